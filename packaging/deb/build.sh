#!/usr/bin/env bash
# Packs the staged product as Debian packages: kata, kata-guest-image, kata-kernel, kata-osbuilder, and kata-qemu and kata-qemu-kvm if
# `make qemu` built them. The same inputs give the same bytes.
# Usage: build.sh [--version VERSION] [--compression TYPE] [--output DIRECTORY]
#   VERSION    default: the workspace's. A version is never made up from the time or the machine.
#   TYPE       dpkg-deb's: xz (default), zstd, gzip, none
#   DIRECTORY  default: target/deb
# SOURCE_DATE_EPOCH: the time of every file in the packages; default: the last commit's, else Cargo.lock's.
# shellcheck source=lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

here=$top/packaging/deb
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$top/Cargo.toml")
compression=xz
output=$top/target/deb
while [ $# != 0 ]; do
    [ $# -ge 2 ] || fail "$1: a value is missing; usage: build.sh [--version VERSION] [--compression TYPE] [--output DIRECTORY]"
    case $1 in
    --version) version=$2 ;;
    --compression) compression=$2 ;;
    --output) output=$2 ;;
    *) fail "usage: build.sh [--version VERSION] [--compression TYPE] [--output DIRECTORY]" ;;
    esac
    shift 2
done
case $compression in xz | zstd | gzip | none) ;; *) fail "--compression $compression: xz, zstd, gzip or none is expected" ;; esac
command -v dpkg-deb >/dev/null || fail "dpkg-deb is missing: Debian packages can be made on Debian only"
[[ $version =~ ^[0-9][0-9A-Za-z.+~]*$ ]] ||
    fail "--version $version: a digit, then letters, digits and . + ~ are expected"

share=$stage/share/kata-containers
for file in "$stage/bin/kata-runtime" "$stage/bin/kata-osbuilder" "$share/vmlinux.container" "$stage/share/man"; do
    [ -e "$file" ] || fail "$file does not exist; run \`make build\` first"
done
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || stat -c %Y "$top/Cargo.lock")}
export SOURCE_DATE_EPOCH
maintainer=${DEB_MAINTAINER:-Kata Containers maintainers <maintainers@kata.invalid>}
machine=$(uname -m)
arch=$(dpkg --print-architecture)
case $arch in amd64) qemu_arch=x86 ;; arm64) qemu_arch=arm ;; *) qemu_arch=$arch ;; esac

umask 022
mkdir -p "$output"
work=$(mktemp -d "$output/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# put MODE SOURCE... DIRECTORY: copies files into a directory of the package's.
put() {
    local mode=$1
    shift
    install -d "${!#}"
    install -m "$mode" "$@"
}

# compressed SOURCE TARGET: as Debian wants manual pages and changelogs.
compressed() {
    install -d "$(dirname "$2")"
    gzip -9n <"$1" >"$2.gz"
}

# Source packages whose code is linked statically, as Built-Using wants them.
sources_of() {
    # shellcheck disable=SC2016 # the $ is dpkg's
    dpkg-query -W -f '${source:Package} (= ${source:Version})\n' "$@" 2>/dev/null | sort -u | paste -sd, | sed 's/,/, /g'
}

# copyright_of CRATE PACKAGE...: the copyright file of a Rust program, with what it is linked from and the licence that each part's own
# description names.
copyright_of() {
    local crate=$1
    shift
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: Kata Containers\n'
    printf 'Comment: Linked statically from these crates, each under the licence named after it:\n'
    (cd "$top" && cargo tree --locked --offline --edges normal --prefix none --format '{p}: {l}' -p "$crate") |
        sed -e 's/ (\/[^)]*)//; s/ (proc-macro)//; s/ (\*)$//' | grep -v ': *$' | sort -u | sed 's/^/ /'
    printf ' and from these Debian source packages, whose copyright files name theirs:\n %s\n' "$(sources_of "$@")"
    printf '\nFiles: *\nCopyright: 2026, the authors of Kata Containers\nLicense: Apache-2.0\n'
    printf ' On Debian systems the full text of the Apache License, version 2.0, is in\n /usr/share/common-licenses/Apache-2.0.\n'
}

documents() {
    local package=$1 doc=$work/$1/usr/share/doc/$1
    install -d "$doc"
    {
        printf '%s (%s) unstable; urgency=medium\n\n' "$package" "$version"
        printf '  * What changed is in /usr/share/doc/kata/CHANGELOG.md.gz.\n\n'
        printf ' -- %s  %s\n' "$maintainer" "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
    } >"$work/changelog"
    compressed "$work/changelog" "$doc/changelog"
    rm "$work/changelog"
    if [ -e "$here/lintian/$package" ]; then
        put 644 "$here/lintian/$package" "$work/$package/usr/share/lintian/overrides"
    fi
}

# pack PACKAGE BUILT-USING: makes the .deb from WORK/PACKAGE.
pack() {
    local package=$1 tree=$work/$1 deb=$output/${1}_${version}_$arch.deb size inputs
    documents "$package"
    find "$tree" -type d -exec chmod 755 {} +
    size=$(find "$tree" -type f -printf '%s\n' -o -printf '1024\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib + 0 }')
    install -d "$tree/DEBIAN"
    (cd "$tree" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
    sed -e "s/@VERSION@/$version/g; s/@ARCH@/$arch/; s/@QEMU_ARCH@/$qemu_arch/; s/@SIZE@/$size/" \
        -e "s/@MAINTAINER@/$maintainer/; s/@BUILT_USING@/$2/; /^Built-Using: $/d" "$here/control/$package" >"$tree/DEBIAN/control"
    find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    inputs=$(cd "$tree" && {
        printf '%s %s\n' "$compression" "$SOURCE_DATE_EPOCH"
        find . -printf '%p %y %m %l\n' | LC_ALL=C sort
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d' ' -f1)
    if [ -e "$deb" ] && [ "$(cat "$output/.$package.from" 2>/dev/null)" = "$version $inputs" ]; then
        say "$deb is up to date"
        rm -rf "$tree"
        return
    fi
    say "packing $deb"
    # One thread: how xz divides its input must not depend on the machine.
    quietly dpkg-deb --root-owner-group --threads-max=1 "-Z$compression" --build "$tree" "$work/new.deb"
    rm -f "$output/${package}"_*.deb
    mv "$work/new.deb" "$deb"
    printf '%s\n' "$version $inputs" >"$output/.$package.from"
    rm -rf "$tree"
}

kata() {
    local tree=$work/kata page completions
    put 755 "$stage/bin/kata-runtime" "$tree/usr/bin"
    ln -s kata-runtime "$tree/usr/bin/kata-shim"
    ln -s kata-runtime "$tree/usr/bin/containerd-shim-kata-v2"
    for page in "$stage"/share/man/man8/kata-{runtime,shim}*.8; do
        compressed "$page" "$tree/usr/share/man/man8/$(basename "$page")"
    done
    completions=$tree/usr/share
    put 644 "$stage/share/bash-completion/completions/kata-runtime" "$completions/bash-completion/completions"
    # Debian's zsh reads what packages bring from here.
    put 644 "$stage/share/zsh/site-functions/_kata-runtime" "$completions/zsh/vendor-completions"
    put 644 "$stage/share/fish/vendor_completions.d/kata-runtime.fish" "$completions/fish/vendor_completions.d"
    compressed "$top/CHANGELOG.md" "$tree/usr/share/doc/kata/CHANGELOG.md"
    put 644 "$top"/docs/*.md "$tree/usr/share/doc/kata"
    copyright_of runtime libc6-dev libseccomp-dev libcap-ng-dev >"$tree/usr/share/doc/kata/copyright"
    pack kata "$(sources_of libc6-dev libseccomp-dev libcap-ng-dev)"
}

osbuilder() {
    local tree=$work/kata-osbuilder page share=$work/kata-osbuilder/usr/share
    put 755 "$stage/bin/kata-osbuilder" "$tree/usr/bin"
    for page in "$stage"/share/man/man1/kata-osbuilder*.1; do
        compressed "$page" "$share/man/man1/$(basename "$page")"
    done
    put 644 "$stage/share/bash-completion/completions/kata-osbuilder" "$share/bash-completion/completions"
    put 644 "$stage/share/zsh/site-functions/_kata-osbuilder" "$share/zsh/vendor-completions"
    put 644 "$stage/share/fish/vendor_completions.d/kata-osbuilder.fish" "$share/fish/vendor_completions.d"
    install -d "$share/doc/kata-osbuilder"
    copyright_of osbuilder libc6-dev >"$share/doc/kata-osbuilder/copyright"
    pack kata-osbuilder "$(sources_of libc6-dev)"
}

guest_image() {
    local tree=$work/kata-guest-image
    # The image, and what may lie beside it: a description of its contents, a disk image with its root hash.
    put 644 "$share"/kata-containers* "$tree/usr/share/kata-containers"
    # This one is there for the tests only.
    rm -f "$tree"/usr/share/kata-containers/*-debian.*
    install -d "$tree/usr/share/doc/kata-guest-image"
    copyright_of kata-agent libc6-dev >"$tree/usr/share/doc/kata-guest-image/copyright"
    pack kata-guest-image "$(sources_of libc6-dev)"
}

kernel() {
    local tree=$work/kata-kernel own=$cache/guest-kernel/$machine origin
    put 644 "$share/vmlinux.container" "$tree/usr/share/kata-containers"
    install -d "$tree/usr/share/doc/kata-kernel"
    if cmp -s "$own/vmlinux.container" "$share/vmlinux.container"; then
        origin="Built from the Linux kernel's source with the configuration in config.gz beside this file."
        [ ! -e "$own/vmlinuz.container" ] || put 644 "$own/vmlinuz.container" "$tree/usr/share/kata-containers"
        compressed "$own/config" "$tree/usr/share/doc/kata-kernel/config"
    else
        origin="Unpacked from Debian's package of version $(strings -n 20 "$share/vmlinux.container" | sed -n 's/^Linux version \([^ ]*\).*/\1/p' | head -n1)."
    fi
    cat >"$tree/usr/share/doc/kata-kernel/copyright" <<COPYRIGHT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Linux
Source: https://www.kernel.org/
Comment: $origin

Files: *
Copyright: 1991 and later, Linus Torvalds and the authors of Linux
License: GPL-2
 On Debian systems the full text of the GNU General Public License, version 2,
 is in /usr/share/common-licenses/GPL-2.
COPYRIGHT
    pack kata-kernel ""
}

# qemu FLAVOUR PACKAGE DIRECTORY
qemu() {
    local built=$cache/qemu/$machine/$1 tree=$work/$2
    if ! "$top/packaging/qemu/build.sh" --check "$machine" "$1" >/dev/null 2>&1; then
        say "no package $2: \`make qemu QEMU_FLAVOUR=$1\` has not built it, or by another recipe"
        return
    fi
    put 755 "$built/bin"/* "$tree/usr/lib/kata-containers/$3/bin"
    put 644 "$built/share/qemu"/* "$tree/usr/lib/kata-containers/$3/share/qemu"
    put 644 "$built/share/doc/copyright" "$tree/usr/share/doc/$2"
    pack "$2" "$(paste -sd, "$built/share/doc/built-using" | sed 's/,/, /g')"
}

kata
guest_image
osbuilder
kernel
qemu full kata-qemu qemu
qemu kvm kata-qemu-kvm qemu-kvm
say "packages of version $version: $output"
