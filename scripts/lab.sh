#!/usr/bin/env bash
# Makes the system that the lab's machine boots, once: CACHE/lab/SYSTEM/{disk.raw,vmlinuz,initrd}, a Debian 12 with systemd, containerd
# and runc, and a newer Debian kernel with KVM and vhost. Prints that directory. SYSTEM is a digest of this script and of what it puts into the system.
# Usage: lab.sh
. "$(dirname "$0")/lib.sh"

# The tests' tools come along, as scripts/setup.sh installs them on a machine.
# Debian's QEMU, the oldest that is supported, runs the guests unless the product has its own.
include=qemu-system-x86,systemd-sysv,dbus,udev,kmod,initramfs-tools,zstd,xz-utils,containerd,runc,iproute2,iptables,nftables,procps,passt,lsof,btrfs-progs,e2fsprogs
kernel_suite=trixie-backports
files=$top/tests/lab/system

mkdir -p "$cache/lab"
exec 9>"$cache/lab/lock"
flock -w 1800 9 || fail "another set-up holds $cache/lab/lock for half an hour"
digest=$({ cat "$0" && cd "$files" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 cat; } | sha256sum | cut -c 1-16)
system=$cache/lab/$digest
if [ -e "$system/disk.raw" ]; then
    printf '%s\n' "$system"
    exit
fi
command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing; run \`scripts/setup.sh test\`"
[ "$(uname -m)" = x86_64 ] || fail "the lab's machine is an x86_64 one, made on such a machine only"
say "the lab's system: made once, in about 5 minutes: $system" >&2

work=$(mktemp -d "$cache/lab/new.XXXXXX")
trap 'as_root rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

say "the lab's system: its kernel, of Debian $kernel_suite" >&2
own_apt lab amd64 "$kernel_suite"
quietly "${own_apt[@]}" update
release=$(apt-cache "${own_apt[@]:2}" depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: linux-image-\([0-9].*\)/\1/p' | head -n 1)
[ -n "$release" ] || fail "Debian $kernel_suite has no kernel of the cloud flavour; scripts/lab.sh needs another suite"
mkdir -p "$work/debs" "$work/kernel"
(cd "$work/debs" && quietly "${own_apt[@]}" download "linux-base-$release" "linux-binary-$release" "linux-modules-$release")
unpack "$work/debs" "$work/kernel"
modules=$work/kernel/usr/lib/modules/$release
cp "$modules/vmlinuz" "$work/vmlinuz"
# The emulated machine would take seconds to unpack each one.
find "$modules" -name '*.ko.xz' -exec xz -d {} +

say "the lab's system: Debian bookworm" >&2
# shellcheck disable=SC2016 # the $ is apt's
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || fail "apt's sources name no mirror of Debian"
# shellcheck disable=SC2016 # the $1 is the hook's
quietly as_root mmdebstrap --mode=root --variant=minbase --include="$include" --format=directory \
    --aptopt='APT::Install-Recommends "false"' \
    --customize-hook='cp '"$modules"'/config "$1/boot/config-'"$release"'"' \
    --customize-hook='cp -a '"${modules%/*}"' "$1/usr/lib/"' \
    --customize-hook='cp -r --preserve=mode '"$files"'/. "$1/"' \
    --customize-hook='chroot "$1" depmod '"$release" \
    --customize-hook='chroot "$1" update-initramfs -c -k '"$release" \
    --customize-hook='chroot "$1" systemctl enable lab.service' \
    --customize-hook='chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer' \
    bookworm "$work/root" "$mirror"

cp "$work/root/boot/initrd.img-$release" "$work/initrd"
rm -rf "$work/root/boot/"*
truncate -s 8G "$work/disk.new"
quietly as_root mkfs.ext4 -q -F -L lab -d "$work/root" "$work/disk.new"
mv "$work/disk.new" "$work/disk.raw"
as_root rm -rf "$work/root" "$work/kernel" "$work/debs"
chmod 755 "$work"
mv "$work" "$system"
trap - EXIT
printf '%s\n' "$system"
