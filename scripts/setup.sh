#!/usr/bin/env bash
# Installs the Debian packages that building and running need, and unpacks what a guest boots from into the cache.
# Usage: setup.sh run|test|lint, or for guests of a foreign architecture setup.sh aarch64|s390x|ppc64le. Quick when nothing is missing; can be interrupted and repeated.
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
case $purpose in
run) ;;
test) packages+=("runc: the reference that the tests and the bench compare with") ;;
lint) packages+=("shellcheck: checks the scripts") ;;
aarch64)
    packages+=(
        "qemu-system-arm: the virtual machine of a foreign architecture"
        "gcc-aarch64-linux-gnu: links the agent for it"
        "libc6-dev-arm64-cross: its C library, linked statically"
    )
    ;;
s390x | ppc64le)
    # The agent is built, nothing more.
    packages+=(
        "gcc-${purpose/ppc64le/powerpc64le}-linux-gnu: links the agent for a foreign architecture"
        "libc6-dev-${purpose/ppc64le/ppc64el}-cross: its C library, linked statically"
    )
    ;;
*) fail "usage: setup.sh run|test|lint|aarch64|s390x|ppc64le" ;;
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
lock_cache
case $purpose in
aarch64) "$top/scripts/rootfs.sh" "$purpose" ;;
s390x | ppc64le) ;;
*)
    "$top/scripts/kernel.sh"
    "$top/scripts/rootfs.sh"
    ;;
esac
