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

# make_from OUTPUT SOURCE... -- COMMAND...: runs the command unless the output was made from just these sources, told by
# path, size and time. Comparing ages is not enough: an unpacked kernel is as old as its package.
make_from() {
    local output=$1 sources=() stamp
    shift
    while [ "$1" != -- ]; do
        sources+=("$1")
        shift
    done
    shift
    stamp=$stage/.$(basename "$output").from
    stat -c '%n %s %Y' "${sources[@]}" >"$stamp.new"
    if [ ! -e "$output" ] || ! cmp -s "$stamp.new" "$stamp"; then
        say "making $(basename "$output") from ${sources[0]}"
        "$@" --output "$output"
        mv "$stamp.new" "$stamp"
    else
        rm "$stamp.new"
    fi
}

share=$stage/share/kata-containers
mkdir -p "$stage/bin" "$share"
put "$built/kata-runtime" "$stage/bin/kata-runtime" 755
ln -sf kata-runtime "$stage/bin/kata-shim"

own=$top/kernel/build/vmlinux
debian=$cache/kernel/current
osbuilder=$built/kata-osbuilder
kernel=$share/vmlinux.container
image=$share/kata-containers-initrd.img
modules=()
if [ -e "$own" ]; then
    source=$own
else
    source=$(echo "$debian"/boot/vmlinuz-*)
    modules=(--modules-dir "$(echo "$debian"/lib/modules/*)")
fi
make_from "$kernel" "$source" "$osbuilder" -- "$osbuilder" kernel --vmlinuz "$source"
make_from "$image" "$built/kata-agent" "$osbuilder" "$source" -- \
    "$osbuilder" initrd --agent "$built/kata-agent" "${modules[@]}"
