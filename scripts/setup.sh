#!/usr/bin/env bash
# Installs the Debian packages that building and running need, and unpacks what a guest boots from into the cache.
# Usage: setup.sh run|image|test|lint, setup.sh kernel [ARCH], or setup.sh guest ARCH for a foreign architecture. Quick when nothing is
# missing; can be interrupted and repeated.
. "$(dirname "$0")/lib.sh"

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
        "createrepo-c: the tests' own rpm repository"
        "gpg: signs the tests' rpm packages"
        "gpg-agent: keeps the key that signs them"
        "cryptsetup-bin: a second opinion on dm-verity trees"
        "fdisk: a second opinion on partition tables"
        "gdisk: a third one"
        "make: runs the kernel in miniature that kata-kernel is tested on"
        "xz-utils: packs and unpacks its source"
    )
    ;;
lint) packages+=("shellcheck: checks the scripts") ;;
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
*) fail "usage: setup.sh run|image|test|lint, setup.sh kernel [ARCH], or setup.sh guest ARCH" ;;
esac

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 "$@"; }

update_lists() {
    [ -n "${lists_are_new:-}" ] && return
    lists_are_new=1
    say "updating the package lists (apt-get update)"
    # One unreachable source of many must not matter; a package that is really missing fails where it is installed.
    apt update >/dev/null || say "apt-get update had errors; going on with the lists that are there"
}

# A machine with qemu-utils from the backports cannot install the release's QEMU beside it. The backports' QEMU is then taken,
# with package lists of our own, so that /etc/apt stays as it is.
install_qemu_from_backports() {
    local package=$1 dir=$cache/backports mirror codename
    codename=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # the $ is apt's
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' "Codename: $codename")
    mirror=${mirror%%$'\n'*}
    [ -n "$mirror" ] || fail "apt's sources name no mirror of Debian $codename; install $package by hand"
    say "QEMU: the release's conflicts with the qemu-utils that are installed; taking $codename-backports'"
    mkdir -p "$dir/parts" "$dir/lists/partial"
    cat >"$dir/parts/backports.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: $codename $codename-updates $codename-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
    local own=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$dir/parts" -o "Dir::State::lists=$dir/lists")
    quietly apt "${own[@]}" update
    quietly apt "${own[@]}" install -y --no-remove --no-install-recommends -t "$codename-backports" "$package"
}

install_packages() {
    local entry name missing=()
    for entry in "${packages[@]}"; do
        name=${entry%%:*}
        if ! installed "$name"; then
            say "needs the package $name (${entry#*: })"
            missing+=("$name")
        fi
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || fail "this set-up knows Debian's apt-get only; install these by hand: ${missing[*]}"
    update_lists
    for name in "${missing[@]}"; do
        say "installing $name (apt-get install)"
        if [[ $name = qemu-system-* ]] && ! apt install -s --no-remove --no-install-recommends "$name" >/dev/null 2>&1; then
            install_qemu_from_backports "$name"
        else
            quietly apt install -y --no-remove --no-install-recommends "$name"
        fi
    done
}

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
if [ "$purpose" = guest ]; then
    # Of the others the agent is built, nothing more.
    [ "$arch" != aarch64 ] || "$top/scripts/rootfs.sh" "$arch"
    exit 0
fi
"$top/scripts/kernel.sh"
"$top/scripts/rootfs.sh"
