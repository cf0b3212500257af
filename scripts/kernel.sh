#!/usr/bin/env bash
# Unpacks a Debian kernel package into the cache, without installing it: CACHE/kernel/VERSION/{boot,lib}, and a
# link CACHE/kernel/current to it; that of a foreign architecture into CACHE/kernel-ARCHITECTURE.
# Usage: kernel.sh [ARCHITECTURE]
. "$(dirname "$0")/lib.sh"

architecture=${1:-$(uname -m)}
kernel=$cache/kernel
[ "$architecture" = "$(uname -m)" ] || kernel=$cache/kernel-$architecture
[ -e "$kernel/current/boot" ] && exit 0

work=$kernel/new
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work"
flavour=$(debian_architecture "$architecture")
if [ "$kernel" = "$cache/kernel" ]; then
    apt_options=()
    update=(as_root apt-get -qq update)
else
    own_apt "$architecture" "$flavour"
    apt_options=("${own_apt[@]:2}")
    update=("${own_apt[@]}" update)
fi
[ "$flavour" != ppc64el ] || flavour=powerpc64le
find_package() {
    apt-cache "${apt_options[@]}" depends "linux-image-$flavour" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n1
}
package=$(find_package)
if [ -z "$package" ]; then
    say "updating the package lists (apt-get update)"
    quietly "${update[@]}"
    package=$(find_package)
fi
[ -n "$package" ] || fail "apt knows no linux-image package; is Debian's main archive in its sources?"
say "guest kernel: downloading $package (about 70 MB)"
cd "$work"
if ! apt-get -qq "${apt_options[@]}" download "$package" >/dev/null 2>&1; then
    say "not there any more; updating the package lists (apt-get update)"
    quietly "${update[@]}"
    package=$(find_package)
    quietly apt-get -qq "${apt_options[@]}" download "$package"
fi
say "guest kernel: unpacking"
dpkg-deb -x "$work"/*.deb "$work/tree"
version=$(basename "$work"/tree/boot/vmlinuz-* | sed 's/^vmlinuz-//')
rm -rf "${kernel:?}/$version"
mv "$work/tree" "$kernel/$version"
ln -sfn "$version" "$kernel/current"
