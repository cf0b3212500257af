#!/usr/bin/env bash
# Runs a container in a virtual machine of its own and shows whose kernel answers.
. "$(dirname "$0")/lib.sh"

bundle=$(mktemp -d)
trap 'rm -rf "$bundle"' EXIT
"$stage/bin/kata-runtime" spec --bundle "$bundle"
# shellcheck disable=SC2016 # the container's shell expands it
sed -i -e 's/"terminal": true/"terminal": false/' \
    -e 's|"path": "rootfs"|"path": "'"$cache/rootfs"'"|' \
    -e 's|^\([[:space:]]*\)"sh"$|\1"sh", "-c", "echo guest kernel: $(uname -r)"|' "$bundle/config.json"
say "kata-runtime run --bundle $bundle demo-$$"
echo "host kernel: $(uname -r)"
if [ "$(id -u)" = 0 ]; then
    "$stage/bin/kata-runtime" run --bundle "$bundle" "demo-$$"
else
    sudo "$stage/bin/kata-runtime" run --bundle "$bundle" "demo-$$"
fi
