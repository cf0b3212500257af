#!/usr/bin/env bash
# Builds the product and lays it out as it is installed: STAGE/bin and STAGE/share/kata-containers.
. "$(dirname "$0")/lib.sh"

say "building (cargo, release)"
cd "$top"
cargo build-static --release -p runtime -p kata-agent -p osbuilder
built=${CARGO_TARGET_DIR:-$top/target}/$(rustc -vV | sed -n 's/^host: //p')/release

# Replaced by renaming, so that a running sandbox keeps the file it has open.
put() {
    if ! cmp -s "$1" "$2"; then
        install -D -m "$3" "$1" "$2.new"
        mv "$2.new" "$2"
    fi
}

share=$stage/share/kata-containers
put "$built/kata-runtime" "$stage/bin/kata-runtime" 755
ln -sf kata-runtime "$stage/bin/kata-shim"
mkdir -p "$share"

own=$top/kernel/build/vmlinux
debian=$cache/kernel/current
kernel=$share/vmlinux.container
image=$share/kata-containers-initrd.img
osbuilder=$built/kata-osbuilder
if [ -e "$own" ]; then
    put "$own" "$kernel" 644
    modules=()
else
    vmlinuz=$(echo "$debian"/boot/vmlinuz-*)
    if [ ! "$kernel" -nt "$vmlinuz" ]; then
        say "guest kernel: $(basename "$vmlinuz")"
        "$osbuilder" kernel --vmlinuz "$vmlinuz" --output "$kernel"
    fi
    modules=(--modules-dir "$(echo "$debian"/lib/modules/*)")
fi
if [ ! "$image" -nt "$built/kata-agent" ] || [ ! "$image" -nt "$osbuilder" ] || [ ! "$image" -nt "$kernel" ]; then
    say "guest image: an initrd with kata-agent"
    "$osbuilder" initrd --agent "$built/kata-agent" "${modules[@]}" --output "$image"
fi
