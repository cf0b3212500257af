#!/usr/bin/env bash
# Installs the packages in a clean Debian 12, upgrades them, runs a container with them, removes and purges them, and compares
# every file with what was there before. Usage: test.sh, after `make build`.
# The clean system is made once, in CACHE/chroot. Everything else happens in a mount namespace of its own on a tmpfs, so
# that nothing is left whatever happens.
# shellcheck source=lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
# shellcheck source=base.sh
. "$top/scripts/base.sh"

# What dpkg and apt keep for themselves when packages come and go, each by name.
own_records='^(var/log/dpkg\.log|var/log/alternatives\.log|var/log/apt/(history|term)\.log|var/log/apt/eipp\.log\.xz
|var/lib/dpkg/(status|available|diversions|statoverride)-old|var/lib/dpkg/triggers/(Lock|Unincorp)|var/lib/dpkg/lock(-frontend)?
|var/lib/apt/extended_states|var/lib/apt/lists/(lock|auxfiles)|var/cache/apt/(src)?pkgcache\.bin
|var/cache/apt/archives/(lock|partial)
|var/cache/ldconfig/aux-cache) '
own_records=${own_records//$'\n'/}

# Everything in the system: path, kind, mode, owner, target and content.
snapshot() {
    (cd "$root" && {
        find . -xdev -mindepth 1 \( -path ./proc -o -path ./dev -o -path ./sys -o -path ./run -o -path ./mnt \) -prune -o \
            -not -type f -printf '%P %y %m %U:%G %l\n' -o -type f -printf '%P %y %m %U:%G\n'
        find . -xdev \( -path ./proc -o -path ./dev -o -path ./sys -o -path ./run -o -path ./mnt \) -prune -o -type f -print0 |
            xargs -0 sha256sum | sed -E 's/^([0-9a-f]+)  \.\/(.*)/\2 content \1/'
    }) | grep -vE "$own_records" | LC_ALL=C sort
}

# same BEFORE AFTER WHEN: fails with the differences.
same() {
    if ! diff -U0 "$1" "$2" >"$work/difference"; then
        grep '^[-+][^-+]' "$work/difference" | head -n 20 >&2
        fail "after $3 the system is not what it was; the differences are above (- before, + after)"
    fi
    say "after $3 nothing is left: $(wc -l <"$1") entries are the same"
}

inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb DEBIAN_FRONTEND=noninteractive "$@"; }

# install_from old|new PACKAGE...
install_from() {
    local from=$1
    shift
    quietly inside sh -c "apt-get -qq install -y --no-install-recommends $(printf "/mnt/$from/%s_* " "$@")"
}

# Runs a command in the system and expects a line of its output.
expect() {
    local wanted=$1 output
    shift
    output=$(inside "$@" 2>&1) || fail "in the clean system \`$*\` failed: $output"
    grep -qE -- "$wanted" <<<"$output" || fail "in the clean system \`$*\` did not say \"$wanted\" but: $output"
}

# Runs a container by the packages' own files. Its root file system is the system itself.
run_container() {
    local bundle=/run/bundle output
    inside mkdir "$bundle"
    inside kata-runtime spec --bundle "$bundle"
    sed -i -e 's/"terminal": true/"terminal": false/' -e 's|"path": "rootfs"|"path": "/"|' \
        -e 's|^\([[:space:]]*\)"sh"$|\1"uname", "-r"|' "$root$bundle/config.json"
    output=$(inside timeout 300 kata-runtime run --bundle "$bundle" "$1" 2>&1) || fail "the installed kata-runtime ran no container: $output"
    say "a container ran ($2): guest kernel ${output##*$'\n'}, host kernel $(uname -r)"
    [ "${output##*$'\n'}" != "$(uname -r)" ] || fail "the container ran on the host's kernel: $output"
    inside rm -r "$bundle"
    # What the runtime found out about KVM holds until the next boot and is kept.
    output=$(find "$root/run" -mindepth 1 -not -type d -not -name kvm-probe)
    [ -z "$output" ] || fail "the container left behind: $output"
}

# The test itself, in the namespace.
test_packages() {
    local packages=(kata kata-guest-image kata-kernel kata-osbuilder)
    mkdir "$work/tmpfs"
    mount -t tmpfs -o mode=755 kata-deb-test "$work/tmpfs"
    # From here on everything is written to memory.
    work=$work/tmpfs
    mkdir "$work"/{upper,work,root}
    root=$work/root
    mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" kata-deb-test "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 dev "$root/dev"
    mkdir "$root"/dev/{pts,shm}
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    for device in null zero full random urandom tty; do
        : >"$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mount -t tmpfs -o mode=755 debs "$root/mnt"
    # As on every running system; what containers leave in it is looked at after each.
    mount -t tmpfs -o mode=755 run "$root/run"

    cp -r "$packs"/{old,new} "$root/mnt"
    snapshot >"$work/before"

    say "installing version 0.0.1"
    install_from old "${packages[@]}"
    say "upgrading"
    install_from new "${packages[@]}"
    for package in "${packages[@]}"; do
        # shellcheck disable=SC2016 # the $ is dpkg's
        expect "^$package .* installed$" dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n' "$package"
        quietly inside dpkg --verify "$package"
    done
    expect '^kata-runtime version' kata-runtime --version
    expect '^kata-osbuilder ' kata-osbuilder --version
    expect 'ociVersion' kata-runtime features
    expect '^\.TH KATA-RUNTIME 8' zcat /usr/share/man/man8/kata-runtime.8.gz
    # shellcheck disable=SC2016 # the $ is the other shell's
    expect '^run resume restore$' bash -c '. /usr/share/bash-completion/completions/kata-runtime
        COMP_WORDS=(kata-runtime r) COMP_CWORD=1
        $(complete -p kata-runtime | sed "s/.*-F \([^ ]*\).*/\1/") kata-runtime r kata-runtime; echo "${COMPREPLY[@]}"'
    expect '^#compdef kata-runtime' cat /usr/share/zsh/vendor-completions/_kata-runtime
    # shellcheck disable=SC2016 # the $ is dpkg's
    run_container deb-distribution "QEMU $(inside dpkg-query -W -f '${Version}' qemu-system-x86)"
    if compgen -G "$root/mnt/new/kata-qemu_*" >/dev/null; then
        say "installing the trimmed QEMU"
        install_from new kata-qemu
        packages+=(kata-qemu)
        run_container deb-trimmed "$(inside sh -c '/usr/lib/kata-containers/qemu/bin/qemu-system-* --version' | head -n1)"
    fi
    for way in remove purge; do
        say "apt-get $way"
        quietly inside apt-get -qq "$way" -y "${packages[@]}"
        snapshot >"$work/after"
        same "$work/before" "$work/after" "apt-get $way"
        # They have no configuration files, so that removing is purging; both are tried from the installed state.
        [ "$way" = purge ] || install_from new "${packages[@]}"
    done
}

pack() { "$top/packaging/deb/build.sh" --compression none --output "$@" >/dev/null; }

if [ "${KATA_DEB_TEST_INSIDE:-}" ]; then
    work=$KATA_DEB_TEST_INSIDE packs=$work/packs
    test_packages
    exit
fi
make_base
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
say "packing version 0.0.1, to upgrade from, and the current one, twice"
pack "$work/packs/old" --version 0.0.1
pack "$work/packs/new"
pack "$work/packs/again"
for deb in "$work"/packs/new/*.deb; do
    cmp "$deb" "$work/packs/again/$(basename "$deb")" || fail "packing twice gave different bytes: $(basename "$deb")"
done
as_root env "KATA_DEB_TEST_INSIDE=$work" "KATA_CACHE=$cache" unshare --mount --propagation private "$0"
say "the packages install, upgrade, run a container, and leave no trace"
