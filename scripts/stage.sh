#!/usr/bin/env bash
# Builds the product and lays it out as it is installed: STAGE/bin and STAGE/share/kata-containers.
. "$(dirname "$0")/lib.sh"

# Two at a time would rename each other's files.
mkdir -p "$stage"
exec 8>"$stage/.lock"
flock -n 8 || {
    say "waiting for another build into $stage"
    flock -w 1800 8 || fail "another build holds $stage/.lock for half an hour"
}

say "building (cargo, release)"
cd "$top"
cargo build-static --release -p runtime -p kata-agent -p osbuilder -p manuals
built=${CARGO_TARGET_DIR:-$top/target}/$(rustc -vV | sed -n 's/^host: //p')/release

# Replaced by renaming, so that a running sandbox keeps the file it has open.
put() {
    if ! cmp -s "$1" "$2"; then
        install -D -m "$3" "$1" "$2.new"
        mv "$2.new" "$2"
    fi
}

share=$stage/share/kata-containers
mkdir -p "$stage/bin" "$share"
put "$built/kata-runtime" "$stage/bin/kata-runtime" 755
ln -sf kata-runtime "$stage/bin/kata-shim"
ln -sf kata-runtime "$stage/bin/containerd-shim-kata-v2"
put "$built/kata-osbuilder" "$stage/bin/kata-osbuilder" 755
"$built/kata-manuals" "$stage/share" kata-runtime kata-osbuilder

# What `make qemu` built, if it did; the runtime prefers it to the distribution's. A foreign architecture's lies beside our own.
for program in "$cache"/qemu/*/{full,kvm}/bin/qemu-system-*; do
    [ -e "$program" ] || continue
    flavour=$(basename "$(dirname "$(dirname "$program")")")
    place=$stage/lib/kata-containers/qemu
    [ "$flavour" = full ] || place=$place-$flavour
    arch=$(basename "$(dirname "$(dirname "$(dirname "$program")")")")
    # It may lack a device that the runtime asks for by now.
    if ! packaging/qemu/build.sh --check "$arch" "$flavour" >/dev/null 2>&1; then
        say "leaving out the QEMU for $arch ($flavour): it was built by another recipe; \`make qemu QEMU_ARCH=$arch QEMU_FLAVOUR=$flavour\` builds it anew"
        rm -f "$place/bin/$(basename "$program")"
        continue
    fi
    put "$program" "$place/bin/$(basename "$program")" 755
    for file in "$(dirname "$program")"/../share/qemu/*; do
        [ ! -e "$file" ] || put "$file" "$place/share/qemu/$(basename "$file")" 644
    done
done

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
