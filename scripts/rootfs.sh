#!/usr/bin/env bash
# Unpacks a small Debian system, the root file system of the demonstration and of the tests, into CACHE/rootfs; that of a
# foreign architecture into CACHE/rootfs-ARCHITECTURE. Nothing in it is run, so that it works for every architecture.
# Usage: rootfs.sh [ARCHITECTURE]
. "$(dirname "$0")/lib.sh"

architecture=${1:-$(uname -m)}
rootfs=$cache/rootfs
[ "$architecture" = "$(uname -m)" ] || rootfs=$cache/rootfs-$architecture

# What a shell session and the tests use; their dependencies come with them.
wanted=(base-files base-passwd bash coreutils dash findutils grep hostname libc-bin mawk mount procps sed util-linux)

# Names the script's version too: what was unpacked by another one is made anew.
recipe="1 ${wanted[*]}"
[ "$(cat "$rootfs.recipe" 2>/dev/null)" = "$recipe" ] && [ -e "$rootfs/bin/sh" ] && exit 0

work=$rootfs.new
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work/debs/partial" "$work/root"
say "root file system: downloading Debian packages for $architecture"
if [ "$rootfs" = "$cache/rootfs" ]; then
    # With an empty status file apt resolves the whole closure, whatever this machine has installed.
    apt_get=(apt-get -qq -o Dir::State::status=/dev/null -o Debug::NoLocking=1
        -o APT::Install-Recommends=false -o APT::Sandbox::User=root)
    update=(as_root apt-get -qq update)
else
    own_apt "$architecture" "$(debian_architecture "$architecture")"
    apt_get=("${own_apt[@]}")
    update=("${apt_get[@]}" update)
fi
download=("${apt_get[@]}" -o "Dir::Cache::archives=$work/debs" --download-only -y install "${wanted[@]}")
if ! "${download[@]}" >/dev/null 2>&1; then
    say "root file system: updating the package lists (apt-get update)"
    quietly "${update[@]}"
    quietly "${download[@]}"
fi
say "root file system: unpacking"
for dir in bin sbin lib lib64; do
    mkdir -p "$work/root/usr/$dir"
    ln -s "usr/$dir" "$work/root/$dir"
done
unpack "$work/debs" "$work/root"
cp "$work/root/usr/share/base-passwd/passwd.master" "$work/root/etc/passwd"
cp "$work/root/usr/share/base-passwd/group.master" "$work/root/etc/group"
ln -sf mawk "$work/root/usr/bin/awk"
[ -e "$work/root/usr/bin/sh" ] || ln -s dash "$work/root/usr/bin/sh"
mkdir -p "$work/root/"{dev,proc,sys,tmp,run,root,mnt}
chmod 1777 "$work/root/tmp"
echo kata >"$work/root/etc/hostname"
: >"$work/root/etc/resolv.conf"
rm -rf "$work/root/usr/share/"{doc,man,locale,info} "${rootfs:?}"
mv "$work/root" "$rootfs"
printf '%s\n' "$recipe" >"$rootfs.recipe"
