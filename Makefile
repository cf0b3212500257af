# The face of the project: `make help` lists what there is.

PREFIX ?= /usr/local
DESTDIR ?=
QEMU_ARCH ?= x86_64
QEMU_FLAVOUR ?= full
STAGE := $(CURDIR)/target/kata
export KATA_STAGE := $(STAGE)
export DISTRO ?= debian
export FORMAT ?= image
export FS ?= erofs

.DEFAULT_GOAL := help
.PHONY: help setup kernel build stage run image test guests faults fuzz contest lab conformance podman docker aarch64 bench cycles count lint qemu deb kubernetes install uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what building and running need, and fetch the guest's kernel
	@scripts/setup.sh run

kernel: ## build the guest's kernel from source (ARCH=aarch64, s390x or ppc64le for others)
	@scripts/setup.sh kernel $(ARCH)
	@scripts/guest-kernel.sh $(ARCH)

build: setup ## build the product into target/kata
	@scripts/stage.sh

run: build ## run a container in a virtual machine of its own
	@scripts/demo.sh

image: build ## build a guest image into target/kata/images (DISTRO=debian, FORMAT=image|initrd, FS=erofs|ext4)
	@scripts/setup.sh image
	@scripts/image.sh

test: kernel ## build, also the guest's kernel, then run all tests
	@scripts/setup.sh test
	@scripts/stage.sh
	@scripts/test.sh

faults: ## try every fault at every step of a sandbox's life, and write the tables in docs/faults.md (a quarter of an hour on two idle cores; KATA_FAULTS=WORDS: only what has them in its name)
	@scripts/setup.sh test
	@scripts/stage.sh
	@KATA_FAULTS="$${KATA_FAULTS:-all}" cargo test -p e2e --test faults -- --exact every_fault_at_every_step --nocapture
	@KATA_FAULTS="$${KATA_FAULTS:-all}" cargo test -p engines --test faults -- --exact every_fault_at_every_step_under_containerd --nocapture

fuzz: ## look for bytes that break a reader of foreign bytes, FUZZ_SECONDS=60 for each target, FUZZ_JOBS=1 at a time (FUZZ="qmp bundle": only those; FUZZ_KEEP=1: keep what it learns in fuzz/learned), and add to the table in docs/fuzzing.md
	@scripts/setup.sh fuzz
	@scripts/fuzz.sh $(FUZZ)

contest: ## run containerd's own tests of a runtime through our shim and through runc's (a quarter of an hour)
	@scripts/setup.sh test
	@scripts/stage.sh
	@scripts/contest.sh

docker: ## drive Docker 20.10, 26 and 28 by the runtime's path and by the shim, beside runc; takes about half an hour
	@scripts/setup.sh test
	@scripts/stage.sh
	@KATA_ENGINES_VERSIONS=all cargo test -p engines --test suite docker:: -- --test-threads 2

lab: ## run tests with KVM, in an emulated machine that has it (LAB=WORDS: vhost or plain, suites, parts of tests' names; docs/lab.md)
	@scripts/setup.sh test
	@scripts/setup.sh lab
	@scripts/stage.sh
	@cargo run --quiet -p lab -- $(LAB)

conformance: ## run the suites of runc, crun and Podman through the built product and through theirs; takes hours where the processor is emulated
	@scripts/setup.sh test
	@scripts/stage.sh
	@scripts/conformance.sh

podman: ## run Podman's features through kata-runtime and through runc (20 minutes; PODMAN_SEQUENCE=100 containers one after another)
	@scripts/setup.sh test
	@scripts/stage.sh
	@KATA_ENGINES_VERSIONS=all KATA_PODMAN_SEQUENCE=$(or $(PODMAN_SEQUENCE),100) cargo test -p engines --test suite --no-fail-fast -- podman:: --test-threads 2

guests: kernel ## run all end-to-end tests in each of the guests: two kernels, two machines, agent-only, Debian as initrd and as verified disk
	@scripts/setup.sh test
	@scripts/stage.sh
	@scripts/test.sh guests

aarch64: ## run containers in an emulated aarch64 guest: build what it needs, then its tests
	@scripts/setup.sh test
	@scripts/setup.sh guest aarch64
	@scripts/stage.sh
	@scripts/guest.sh aarch64
	@scripts/test.sh aarch64

bench: ## measure starts, execs, pods, files, the network and an idle sandbox beside runc
	@scripts/setup.sh test
	@scripts/stage.sh
	@cargo run --release --quiet -p bench
	@cargo run --release --quiet -p bench -- engines

cycles: ## a thousand sandboxes, fifty at once, a thousand containers of one machine: nothing may be left or grow (three quarters of an hour)
	@scripts/setup.sh test
	@scripts/stage.sh
	@cargo run --quiet -p bench -- cycles

count: kernel ## count the guest's instructions of a boot, and measure the memory of a small guest
	@scripts/setup.sh test
	@scripts/stage.sh
	@for machine in q35 microvm; do cargo run --quiet -p bench -- boot --machine $$machine || exit 1; done
	@cargo run --quiet -p bench -- boot --pod
	@cargo run --quiet -p bench -- guest

lint: ## check formatting, lints and scripts
	@scripts/setup.sh lint
	@scripts/lint.sh

qemu: ## build a trimmed QEMU into the cache (QEMU_ARCH, QEMU_FLAVOUR)
	@packaging/qemu/build.sh $(QEMU_ARCH) $(QEMU_FLAVOUR)

deb: ## pack the built product as Debian packages into target/deb
	@packaging/deb/build.sh

kubernetes: ## make the image that installs the built product on Kubernetes' nodes, into target/kubernetes
	@packaging/kubernetes/image.sh

install: ## install the built product (PREFIX, DESTDIR)
	@PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) scripts/install.sh install

uninstall: ## remove what install installed
	@PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) scripts/install.sh uninstall

clean: ## remove what was built (the cache of downloads stays)
	cargo clean
