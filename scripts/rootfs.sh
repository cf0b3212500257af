#!/usr/bin/env bash
# Unpacks a small Debian system, the root file system of the demonstration and of the tests, into CACHE/rootfs.
. "$(dirname "$0")/lib.sh"

[ -e "$cache/rootfs/bin/sh" ] && exit 0

# What a shell session and the tests use; their dependencies come with them.
wanted=(base-files base-passwd bash coreutils dash findutils grep hostname libc-bin mawk mount procps sed util-linux)

work=$cache/rootfs.new
rm -rf "$work"
mkdir -p "$work/debs/partial" "$work/root"
say "root file system: downloading Debian packages"
# With an empty status file apt resolves the whole closure, whatever this machine has installed.
options=(-o Dir::State::status=/dev/null -o "Dir::Cache::archives=$work/debs" -o Debug::NoLocking=1
    -o APT::Install-Recommends=false -o APT::Sandbox::User=root)
quietly apt-get -qq "${options[@]}" --download-only -y install "${wanted[@]}"
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
rm -rf "$work/root/usr/share/"{doc,man,locale,info} "${cache:?}/rootfs"
mv "$work/root" "$cache/rootfs"
rm -rf "$work"
