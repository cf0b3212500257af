#!/usr/bin/env bash
# Makes what a guest of a foreign architecture boots from, with the osbuilder of `make build`:
# CACHE/guest/ARCHITECTURE/{vmlinux.container,kata-containers-initrd.img}.
# Usage: guest.sh ARCHITECTURE
#
# The kernel is ours if `make kernel ARCH=ARCHITECTURE` has built it (KATA_GUEST_KERNEL=debian passes it over), else Debian's.
. "$(dirname "$0")/lib.sh"

architecture=${1:-}
[ -n "$architecture" ] || fail "usage: guest.sh ARCHITECTURE"
debian_architecture "$architecture" >/dev/null
osbuilder=${CARGO_TARGET_DIR:-$top/target}/$(rustc -vV | sed -n 's/^host: //p')/release/kata-osbuilder
[ -x "$osbuilder" ] || fail "$osbuilder is not built; run \`make build\`"

"$top/scripts/cross-agent.sh" "$architecture"

lock_cache
guest=$cache/guest/$architecture
kernel=$cache/guest-kernel/$architecture/vmlinux.container
modules=()
if [ ! -e "$kernel" ] || [ "${KATA_GUEST_KERNEL:-}" = debian ]; then
    "$top/scripts/kernel.sh" "$architecture"
    package=$cache/kernel-$architecture/current
    kernel=$(echo "$package"/boot/vmlinu[xz]-*)
    modules=(--package-dir "$package")
fi
mkdir -p "$guest"
trap 'rm -f "$guest"/*.new' EXIT
say "guest files for $architecture: kernel $kernel"
"$osbuilder" kernel --vmlinuz "$kernel" --output "$guest/vmlinux.container.new"
"$osbuilder" initrd --agent "$cache/agent/$architecture/kata-agent" "${modules[@]}" --output "$guest/kata-containers-initrd.img.new"
for file in vmlinux.container kata-containers-initrd.img; do
    mv "$guest/$file.new" "$guest/$file"
done
# The tests pass over a guest whose agent speaks another version of the protocol.
sed -n 's/^pub const PROTOCOL_VERSION: u32 = \(.*\);/\1/p' "$top/crates/agent-api/src/lib.rs" >"$guest/protocol"
say "guest files for $architecture: $guest"
