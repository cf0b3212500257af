#!/usr/bin/env bash
# Unpacks a small Debian system, the root file system of the demonstration and of the tests, into CACHE/rootfs.
. "$(dirname "$0")/lib.sh"

# What a shell session and the tests use; their dependencies come with them.
wanted=(base-files base-passwd bash coreutils dash findutils grep hostname libc-bin mawk mount procps sed util-linux)

# Names the script's version too: what was unpacked by another one is made anew.
recipe="1 ${wanted[*]}"
[ "$(cat "$cache/rootfs.recipe" 2>/dev/null)" = "$recipe" ] && [ -e "$cache/rootfs/bin/sh" ] && exit 0

work=$cache/rootfs.new
rm -rf "$work"
mkdir -p "$work/debs/partial" "$work/root"
say "root file system: downloading Debian packages"
# With an empty status file apt resolves the whole closure, whatever this machine has installed.
options=(-o Dir::State::status=/dev/null -o "Dir::Cache::archives=$work/debs" -o Debug::NoLocking=1
    -o APT::Install-Recommends=false -o APT::Sandbox::User=root)
download=(apt-get -qq "${options[@]}" --download-only -y install "${wanted[@]}")
if ! "${download[@]}" >/dev/null 2>&1; then
    say "root file system: updating the package lists (apt-get update)"
    quietly as_root apt-get -qq update
    quietly "${download[@]}"
fi
say "root file system: unpacking"
for dir in bin sbin lib lib64; do
    mkdir -p "$work/root/usr/$dir"
    ln -s "usr/$dir" "$work/root/$dir"
done
for package in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink --no-same-owner -C "$work/root"
done
cp "$work/root/usr/share/base-passwd/passwd.master" "$work/root/etc/passwd"
cp "$work/root/usr/share/base-passwd/group.master" "$work/root/etc/group"
ln -sf mawk "$work/root/usr/bin/awk"
[ -e "$work/root/usr/bin/sh" ] || ln -s dash "$work/root/usr/bin/sh"
mkdir -p "$work/root/"{dev,proc,sys,tmp,run,root,mnt}
chmod 1777 "$work/root/tmp"
echo kata >"$work/root/etc/hostname"
: >"$work/root/etc/resolv.conf"
rm -rf "$work/root/usr/share/"{doc,man,locale,info} "${cache:?}/rootfs"
mv "$work/root" "$cache/rootfs"
printf '%s\n' "$recipe" >"$cache/rootfs.recipe"
rm -rf "$work"
