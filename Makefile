# The face of the project: `make help` lists what there is.

PREFIX ?= /usr/local
DESTDIR ?=
STAGE := $(CURDIR)/target/kata
export KATA_STAGE := $(STAGE)

.DEFAULT_GOAL := help
.PHONY: help setup kernel build stage run test aarch64 bench lint install uninstall clean

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

test: ## build, then run all tests
	@scripts/setup.sh test
	@scripts/stage.sh
	@scripts/test.sh

aarch64: ## run containers in an emulated aarch64 guest: build what it needs, then its tests
	@scripts/setup.sh test
	@scripts/setup.sh guest aarch64
	@scripts/stage.sh
	@scripts/guest.sh aarch64
	@scripts/test.sh aarch64

bench: ## measure a start, an exec and an idle sandbox beside runc
	@scripts/setup.sh test
	@scripts/stage.sh
	@cargo run --release --quiet -p bench

lint: ## check formatting, lints and scripts
	@scripts/setup.sh lint
	@scripts/lint.sh

install: ## install the built product (PREFIX, DESTDIR)
	@test -x $(STAGE)/bin/kata-runtime || { echo 'error: nothing is built; run `make build` first' >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/kata-containers
	install -m 755 $(STAGE)/bin/kata-runtime $(DESTDIR)$(PREFIX)/bin/
	ln -sf kata-runtime $(DESTDIR)$(PREFIX)/bin/kata-shim
	install -m 644 $(filter-out %-debian.container %-debian.img,$(wildcard $(STAGE)/share/kata-containers/*)) $(DESTDIR)$(PREFIX)/share/kata-containers/

uninstall: ## remove what install installed
	rm -f $(DESTDIR)$(PREFIX)/bin/kata-runtime $(DESTDIR)$(PREFIX)/bin/kata-shim
	rm -rf $(DESTDIR)$(PREFIX)/share/kata-containers

clean: ## remove what was built (the cache of downloads stays)
	cargo clean
