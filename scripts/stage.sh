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

own=$cache/guest-kernel/x86_64/vmlinux.container
debian=$cache/kernel/current
osbuilder=$built/kata-osbuilder

# stage_guest SUFFIX KERNEL [MODULES]: a kernel and the initrd that goes with it; without modules if they are built in.
stage_guest() {
    local suffix=$1 source=$2 modules=()
    [ $# -lt 3 ] || modules=(--modules-dir "$3")
    make_from "$share/vmlinux$suffix.container" "$source" "$osbuilder" -- "$osbuilder" kernel --vmlinuz "$source"
    make_from "$share/kata-containers-initrd$suffix.img" "$built/kata-agent" "$osbuilder" "$source" -- \
        "$osbuilder" initrd --agent "$built/kata-agent" "${modules[@]}"
}

# The kernel that `make kernel` built is the product's. Debian's is used until then, and beside it so that the tests can
# run on both.
suffix=
if [ -e "$own" ]; then
    stage_guest "" "$own"
    suffix=-debian
fi
if [ -e "$debian" ]; then
    stage_guest "$suffix" "$(echo "$debian"/boot/vmlinuz-*)" "$(echo "$debian"/lib/modules/*)"
elif [ ! -e "$own" ]; then
    fail "there is no kernel for the guest in $cache; run \`make setup\` or \`make kernel\`"
fi
