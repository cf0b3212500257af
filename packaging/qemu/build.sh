#!/usr/bin/env bash
# Builds a QEMU that has our machines and devices and nothing else, from Debian's source package, into
# CACHE/qemu/ARCH/FLAVOUR/{bin,share/qemu}. Nothing is installed but what the build needs.
# Usage: build.sh [--locked] [--jobs N] [--check] [ARCH [FLAVOUR]]
#   ARCH     x86_64 (default) or aarch64: the guest's
#   FLAVOUR  full (default): KVM, and emulation where it does not work; kvm: KVM only; plugins: emulation with TCG plugins
#   --locked refuse any source but the one that source.conf names
#   --check  build nothing; say whether what was built is what would be
# Quick when nothing changed. An interrupted build goes on where it was.
# shellcheck source=lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
# shellcheck source=packages.sh
. "$(dirname "$0")/../../scripts/packages.sh"

here=$top/packaging/qemu
# shellcheck source=../packaging/qemu/source.conf
. "$here/source.conf"

usage() { fail "usage: build.sh [--locked] [--jobs N] [--check] [x86_64|aarch64 [full|kvm|plugins]]"; }

locked='' check='' jobs=$(nproc) words=()
while [ $# != 0 ]; do
    case $1 in
    --locked) locked=1 ;;
    --check) check=1 ;;
    --jobs)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage
        jobs=$2
        shift
        ;;
    -*) usage ;;
    *) words+=("$1") ;;
    esac
    shift
done
[ ${#words[@]} -le 2 ] || usage
arch=${words[0]:-x86_64} flavour=${words[1]:-full}
case $arch in x86_64 | aarch64) ;; *) usage ;; esac

own_arch=$(uname -m)
case $flavour in
# One file that needs no library of the host's, at a random address.
full) link=(--static --enable-tcg) ;;
kvm)
    [ "$arch" = "$own_arch" ] || fail "flavour kvm: KVM runs $own_arch guests here, not $arch ones; take flavour full"
    link=(--static --disable-tcg)
    ;;
# A static program cannot load a plugin.
plugins) link=(--enable-tcg --enable-plugins) ;;
*) usage ;;
esac
[ "$arch" = "$own_arch" ] || link+=(--disable-kvm)

# package: why
packages=(
    "gcc: the compiler"
    "libc6-dev: the C library, linked statically"
    "make: builds the option ROMs"
    "ninja-build: runs the build"
    "pkg-config: finds the libraries"
    "python3-venv: QEMU's build runs in a Python environment of its own"
    "dpkg-dev: unpacks Debian's source package and applies Debian's patches"
    "xz-utils: compression of the source package"
    "libglib2.0-dev: main loop and data structures"
    "libpcre2-dev: needed by GLib, linked statically"
    "zlib1g-dev: QEMU cannot be built without"
    "libseccomp-dev: the filter of system calls"
    "libfdt-dev: device trees of microvm and virt"
    "libaio-dev: block devices by Linux AIO"
    "liburing-dev: block devices by io_uring"
)

# Everything that the result depends on, as one line of text.
inputs() {
    # The number stands for this script: it grows when what it makes changes.
    local recipe=1 files=("$here"/{source.conf,options.conf,"devices/$arch.mak","devices/$arch.expect"} "$here"/patches/*.patch)
    # shellcheck disable=SC2016 # the $ is dpkg's
    printf '%s %s %s %s %s\n' "$recipe" "$arch" "$flavour" "$(cat "${files[@]}" | sha256sum | cut -d' ' -f1)" \
        "$(dpkg-query -W -f '${Package}=${Version} ' gcc libc6-dev libglib2.0-dev libseccomp-dev 2>/dev/null)"
}

# Lists of our own, so that /etc/apt stays as it is: the suite with its sources, from the mirrors that this machine uses.
lists=$cache/qemu/apt
suite_apt=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$lists/parts" -o "Dir::State::lists=$lists/lists"
    -o APT::Get::List-Cleanup=false -o APT::Sandbox::User=root)
mirror() {
    # shellcheck disable=SC2016 # the $ is apt's
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Label: $1" | head -n1
}
fetch_lists() {
    local main security
    main=$(mirror Debian)
    security=$(mirror Debian-Security)
    [ -n "$main" ] || fail "apt's sources name no mirror of Debian; without one there is no source package to build"
    mkdir -p "$lists/parts" "$lists/lists/partial"
    {
        printf 'Types: deb deb-src\nURIs: %s\nSuites: %s %s-updates\nComponents: main\n' "$main" "$suite" "$suite"
        printf 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n'
        [ -z "$security" ] || printf '\nTypes: deb-src\nURIs: %s\nSuites: %s-security\nComponents: main\nSigned-By: %s\n' \
            "$security" "$suite" /usr/share/keyrings/debian-archive-keyring.gpg
    } >"$lists/parts/$suite.sources"
    say "reading Debian $suite's package lists (they stay in $lists)"
    quietly apt-get -qq "${suite_apt[@]}" update
}

# checksum FILE SHA256: whether the file is there and is the one.
checksum() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]; }

# Puts the source package into CACHE/src/qemu and sets `version` and `dsc`.
fetch_source() {
    local dir=$cache/src/qemu have=1 offered upstream
    mkdir -p "$dir"
    upstream=${version#*:}
    dsc=$dir/qemu_$upstream.dsc
    checksum "$dsc" "$sha256_dsc" && checksum "$dir/qemu_${upstream%-*}.orig.tar.xz" "$sha256_orig" &&
        checksum "$dir/qemu_$upstream.debian.tar.xz" "$sha256_debian" || have=
    [ -n "$have" ] && return
    [ -n "${suite_lists_are_new:-}" ] || fetch_lists
    suite_lists_are_new=1
    # All versions that the suite offers, newest first.
    offered=$(apt-cache "${suite_apt[@]}" showsrc --only-source qemu | sed -n 's/^Version: //p' | sort -Vr)
    [ -n "$offered" ] || fail "Debian $suite offers no source package qemu; correct \`suite\` in $here/source.conf"
    if ! grep -qxF "$version" <<<"$offered"; then
        local newest=${offered%%$'\n'*}
        [ -z "$locked" ] || fail "Debian $suite has QEMU $newest, not $version any more; correct $here/source.conf, or build without --locked"
        dpkg --compare-versions "$newest" gt "$version" ||
            fail "Debian $suite offers only QEMU $newest, older than $version in $here/source.conf"
        say "warning: QEMU $version is no longer offered; building $newest, which apt vouches for and nobody here has tested"
        version=$newest
        unpinned=1
    fi
    say "downloading the source of QEMU $version (40 MB)"
    (cd "$dir" && quietly apt-get -qq "${suite_apt[@]}" source --download-only "qemu=$version")
    upstream=${version#*:}
    dsc=$dir/qemu_$upstream.dsc
    if [ -z "${unpinned:-}" ]; then
        for entry in "$dsc $sha256_dsc" "$dir/qemu_${upstream%-*}.orig.tar.xz $sha256_orig" "$dir/qemu_$upstream.debian.tar.xz $sha256_debian"; do
            checksum "${entry% *}" "${entry##* }" ||
                fail "${entry% *} is not the file that source.conf names (SHA-256 ${entry##* }); remove it and try again"
        done
    fi
}

# Unpacks Meson and sets `meson` to where Python finds it.
fetch_meson() {
    local dir=$cache/qemu/meson-$meson_version deb
    meson=$dir/usr/lib/python3/dist-packages
    [ -d "$meson/mesonbuild" ] && return
    [ -n "${suite_lists_are_new:-}" ] || fetch_lists
    suite_lists_are_new=1
    say "downloading Meson $meson_version, which builds QEMU"
    rm -rf "$dir" "$dir.new"
    mkdir -p "$dir.new"
    deb=$dir.new/meson_${meson_version}_all.deb
    if ! (cd "$dir.new" && apt-get -qq "${suite_apt[@]}" download "meson=$meson_version" >/dev/null 2>&1); then
        [ -z "$locked" ] || fail "Debian $suite does not have Meson $meson_version any more; correct $here/source.conf, or build without --locked"
        say "warning: Meson $meson_version is no longer offered; taking the suite's, which apt vouches for"
        (cd "$dir.new" && quietly apt-get -qq "${suite_apt[@]}" download meson)
        deb=$(echo "$dir.new"/meson_*.deb)
    elif ! checksum "$deb" "$meson_sha256"; then
        fail "$deb is not the file that source.conf names (SHA-256 $meson_sha256)"
    fi
    dpkg-deb -x "$deb" "$dir.new"
    mv "$dir.new" "$dir"
}

# Shows a tenth of the build at a time, and the end of the log if it fails.
run_ninja() {
    local log=$1
    shift
    if ! NINJA_STATUS='[%f/%t] ' nice -n 10 ninja -j"$jobs" "$@" 2>&1 | tee "$log" |
        awk -F '[][/]' '/^\[[0-9]+\/[0-9]+\]/ { tenth = int($2 * 10 / $3); if (tenth > shown) { shown = tenth
                printf "    %d of %d steps\n", $2, $3; fflush() } }'; then
        tail -n 25 "$log" >&2
        fail "QEMU's build failed; the whole log is $log"
    fi
}

configure_and_build() {
    local work=$1 options=()
    mapfile -t options < <(sed -e '/^#/d' -e '/^$/d' "$here/options.conf")
    export PYTHONPATH=$meson PYTHONDONTWRITEBYTECODE=1 SOURCE_DATE_EPOCH
    SOURCE_DATE_EPOCH=$(sed -n 's/^Date: //p' <(dpkg-parsechangelog -l "$work/source/debian/changelog") | date -f - +%s)
    if [ ! -e "$work/build/build.ninja" ]; then
        say "configuring"
        cp "$here/devices/$arch.mak" "$work/source/configs/devices/$arch-softmmu/kata.mak"
        rm -rf "$work/build"
        mkdir "$work/build"
        # Sections that nothing refers to are left out by the linker. Paths of this machine are none of the program's.
        (cd "$work/build" && quietly ../source/configure --python=/usr/bin/python3 --target-list="$arch-softmmu" \
            "--with-devices-$arch=kata" --prefix=/usr/lib/kata-containers/qemu \
            --extra-cflags="-ffunction-sections -fdata-sections -ffile-prefix-map=$work/=" \
            --extra-ldflags="-Wl,--gc-sections" "${options[@]}" "${link[@]}")
    fi
    say "compiling with $jobs jobs (log: $work/ninja.log)"
    run_ninja "$work/ninja.log" -C "$work/build" "qemu-system-$arch"
    if [ "$arch" = x86_64 ]; then
        say "building the firmware: qboot and the option ROMs"
        # QEMU's own configure makes this file only if the compiler can link 32-bit programs; ROMs need no library for that.
        mkdir -p "$work/optionrom"
        printf '%s\n' "TOPSRC_DIR=$work/source" "TARGET_DIR=" CC=gcc OBJCOPY=objcopy PYTHON=/usr/bin/python3 >"$work/optionrom/config.mak"
        quietly make -C "$work/optionrom" -f "$work/source/pc-bios/optionrom/Makefile" all
        rm -rf "$work/qboot"
        quietly "$work/build/pyvenv/bin/meson" setup "$work/source/roms/qboot" "$work/qboot"
        quietly ninja -C "$work/qboot"
    fi
}

# Each machine and device that was wanted is there.
verify() {
    local program=$1 kind name machines devices missing=()
    machines=$("$program" -machine help)
    devices=$("$program" -machine none -device help)
    while read -r kind name; do
        case $kind in
        machine) grep -q "^$name " <<<"$machines" ;;
        device) grep -q "^name \"$name\"" <<<"$devices" ;;
        '#' | '') true ;;
        *) fail "$here/devices/$arch.expect: \"$kind $name\" is neither a machine nor a device" ;;
        esac || missing+=("$kind $name")
    done <"$here/devices/$arch.expect"
    [ ${#missing[@]} = 0 ] || fail "the built QEMU lacks: $(printf '%s, ' "${missing[@]}" | sed 's/, $//'); see $here/devices/$arch.mak"
}

collect() {
    local work=$1 new=$2 file
    install -D "$work/build/qemu-system-$arch" "$new/bin/qemu-system-$arch"
    strip "$new/bin/qemu-system-$arch"
    if [ "$arch" = x86_64 ]; then
        install -D -m 644 "$work/qboot/bios.bin" "$new/share/qemu/qboot.rom"
        # Loaders of an ELF kernel and of a compressed one, and the helper of KVM's older interrupt controllers.
        for file in pvh linuxboot_dma kvmvapic; do
            install -m 644 "$work/optionrom/$file.bin" "$new/share/qemu/"
        done
    fi
    install -D -m 644 "$work/source/debian/copyright" "$new/share/doc/copyright"
    {
        printf 'qemu (= %s)\n' "$version"
        # shellcheck disable=SC2016 # the $ is dpkg's
        [ "$flavour" = plugins ] || dpkg-query -W -f '${source:Package} (= ${source:Version})\n' \
            libc6-dev libglib2.0-dev libpcre2-dev zlib1g-dev libseccomp-dev libfdt-dev libaio-dev liburing-dev
    } | sort -u >"$new/share/doc/built-using"
}

out=$cache/qemu/$arch/$flavour
if [ -e "$out/.from" ] && [ "$(inputs)" = "$(cat "$out/.from")" ]; then
    say "QEMU $arch ($flavour) is up to date: $out"
    exit 0
fi
[ -z "$check" ] || fail "QEMU $arch ($flavour) in $out was built by another recipe than this one; run \`make qemu QEMU_ARCH=$arch QEMU_FLAVOUR=$flavour\`"
install_packages
mkdir -p "$cache/qemu"
exec 8>"$cache/qemu/lock"
flock -n 8 || {
    say "waiting for another build of QEMU in $cache/qemu"
    flock -w 7200 8 || fail "another build holds $cache/qemu/lock for two hours"
}
from=$(inputs)
work=$cache/qemu/build-$arch-$flavour
free=$(df --output=avail -k "$cache" | tail -n1)
[ "$free" -ge 1500000 ] || fail "$cache has $((free / 1024)) MiB free, and the build takes 1500; free some, or set KATA_CACHE to another place"
interrupted() {
    [ ! -d "$work" ] || say "interrupted; what was compiled is kept in $work, and the next build goes on there"
    exit "$1"
}
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
fetch_source
fetch_meson
if [ "$(cat "$work/from" 2>/dev/null)" != "$from $version" ]; then
    say "unpacking QEMU $version"
    rm -rf "$work"
    mkdir -p "$work"
    quietly dpkg-source --no-check -x "$dsc" "$work/source"
    for patch in "$here"/patches/*.patch; do
        say "applying ${patch##*/}"
        quietly patch -d "$work/source" -p1 -F0 -i "$patch" ||
            fail "$patch does not fit QEMU $version; if this release no longer needs it, remove it"
    done
    printf '%s\n' "$from $version" >"$work/from"
else
    say "going on with the build in $work"
fi
configure_and_build "$work"
rm -rf "$out.new"
collect "$work" "$out.new"
verify "$out.new/bin/qemu-system-$arch"
printf '%s\n' "$from" >"$out.new/.from"
mkdir -p "$(dirname "$out")"
rm -rf "$out"
mv "$out.new" "$out"
rm -rf "$work"
say "built $out/bin/qemu-system-$arch: $(du -h --apparent-size "$out/bin/qemu-system-$arch" | cut -f1), $("$out/bin/qemu-system-$arch" --version | head -n1)"
