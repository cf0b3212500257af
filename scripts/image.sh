#!/usr/bin/env bash
# Builds a guest image with the staged builder and the agent just built: STAGE/images/DISTRO/kata-containers.img, or
# kata-containers-initrd.img. Environment: DISTRO (any source of kata-osbuilder), FORMAT (image or initrd), FS (erofs or ext4).
. "$(dirname "$0")/lib.sh"

distro=${DISTRO:-debian}
format=${FORMAT:-image}
file_system=${FS:-erofs}
built=${CARGO_TARGET_DIR:-$top/target}/$(rustc -vV | sed -n 's/^host: //p')/release
output=$stage/images/${distro//[^A-Za-z0-9.-]/-}
case $format in
initrd) image=$output/kata-containers-initrd.img ;;
image) image=$output/kata-containers.img ;;
*) fail "FORMAT is $format; it is image or initrd" ;;
esac
mkdir -p "$output"

arguments=(--source "$distro" --format "$format" --agent "$built/kata-agent" --agent-lock "$top/Cargo.lock" --output "$image")
if [ "$format" = image ]; then
    arguments+=(--fs "$file_system")
fi
# A distribution's kernel has as modules what our own has built in. They help an initrd only: with them on the disk the kernel could not
# read the disk.
own=$cache/guest-kernel/$(uname -m)/vmlinux.container
if [ ! -e "$own" ]; then
    if [ "$format" = initrd ]; then
        arguments+=(--package-dir "$cache/kernel/current")
    else
        say "note: Debian's packaged kernel cannot boot a disk image; \`make kernel\` builds one that can"
    fi
fi
say "building a guest image from $distro"
if [ "$(id -u)" = 0 ] || [ "$distro" = agent-only ]; then
    "$stage/bin/kata-osbuilder" build "${arguments[@]}"
else
    as_root "$stage/bin/kata-osbuilder" build "${arguments[@]}"
fi
say "to use it: put \`$format = \"$image\"\` under [hypervisor.qemu] in the configuration"
say "to try it: $stage/bin/kata-osbuilder check $image"
