#!/usr/bin/env bash
# Builds the guest's kernel from source into CACHE/guest-kernel/ARCH. Usage: guest-kernel.sh [ARCH]; this machine's by default.
# The source and the objects stay in the cache; nothing is done when nothing has changed.
. "$(dirname "$0")/lib.sh"

arch=${1:-$(uname -m)}
cd "$top"
say "building the kernel's builder (cargo)"
cargo build --quiet -p kernel-builder
builder=${CARGO_TARGET_DIR:-$top/target}/debug/kata-kernel

# Package lists that are older than the archive name a source that is gone there.
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
fetch() { "$builder" fetch --arch "$arch" 2> >(tee "$messages" >&2) >/dev/null; }
if ! fetch; then
    grep -q 'apt-get update' "$messages" || exit 1
    say "updating the package lists (apt-get update)"
    quietly as_root apt-get -qq update
    fetch
fi
"$builder" build --arch "$arch"
