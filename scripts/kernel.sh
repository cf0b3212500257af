#!/usr/bin/env bash
# Unpacks a Debian kernel package into the cache, without installing it: CACHE/kernel/VERSION/{boot,lib}, and a
# link CACHE/kernel/current to it.
. "$(dirname "$0")/lib.sh"

[ -e "$cache/kernel/current/boot" ] && exit 0

work=$cache/kernel/new
rm -rf "$work"
mkdir -p "$work"
find_package() { apt-cache depends "linux-image-$(dpkg --print-architecture)" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n1; }
package=$(find_package)
if [ -z "$package" ]; then
    say "updating the package lists (apt-get update)"
    quietly as_root apt-get -qq update
    package=$(find_package)
fi
[ -n "$package" ] || fail "apt knows no linux-image package; is Debian's main archive in its sources?"
say "guest kernel: downloading $package (about 70 MB)"
cd "$work"
if ! apt-get -qq download "$package" >/dev/null 2>&1; then
    say "not there any more; updating the package lists (apt-get update)"
    quietly as_root apt-get -qq update
    package=$(find_package)
    quietly apt-get -qq download "$package"
fi
say "guest kernel: unpacking"
dpkg-deb -x "$work"/*.deb "$work/tree"
version=$(basename "$work"/tree/boot/vmlinuz-* | sed 's/^vmlinuz-//')
rm -rf "${cache:?}/kernel/$version"
mv "$work/tree" "$cache/kernel/$version"
ln -sfn "$version" "$cache/kernel/current"
rm -rf "$work"
