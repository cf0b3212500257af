# shellcheck shell=bash
# shellcheck disable=SC2154 # cache is lib.sh's, packages the caller's
# Installing Debian packages. Source it after lib.sh, set the array `packages` ("NAME: WHY"), call install_packages.

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
