#!/usr/bin/env bash
# Makes the guests in which the end-to-end tests are run besides the usual one, and a configuration for each:
# STAGE/variants/NAME.toml. Prints the names. The Debian images are built once, and again when the agent or the builder is new.
. "$(dirname "$0")/lib.sh"

share=$stage/share/kata-containers
built=${CARGO_TARGET_DIR:-$top/target}/$(rustc -vV | sed -n 's/^host: //p')/release
images=$stage/images/variants
mkdir -p "$stage/variants" "$images"

# variant NAME LINE...: a configuration with these lines under [hypervisor.qemu].
variant() {
    printf '%s\n' '[hypervisor.qemu]' "${@:2}" '[agent.kata]' 'dial_timeout = 120' >"$stage/variants/$1.toml"
    printf '%s\n' "$1"
}

debian_image() {
    make_from "$images/$1" "$built/kata-agent" "$built/kata-osbuilder" -- \
        as_root "$built/kata-osbuilder" build --source debian --agent "$built/kata-agent" --agent-lock "$top/Cargo.lock" "${@:2}" >&2
}

debian_image kata-containers.img --format image --fs erofs
debian_image kata-containers-initrd.img --format initrd --compression zstd
# The packaged kernel needs modules, and cannot boot a disk without them.
debian_image kata-containers-initrd-modules.img --format initrd --package-dir "$cache/kernel/current"

packaged="kernel = \"$share/vmlinux-debian.container\""
variant packaged-kernel "$packaged" "initrd = \"$share/kata-containers-initrd-debian.img\""
variant packaged-kernel-debian-initrd "$packaged" "initrd = \"$images/kata-containers-initrd-modules.img\""
variant debian-initrd "initrd = \"$images/kata-containers-initrd.img\""
variant debian-verity "image = \"$images/kata-containers.img\""
variant microvm 'machine_type = "microvm"'
