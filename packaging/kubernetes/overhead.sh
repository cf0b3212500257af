#!/usr/bin/env bash
# Measures what a pod costs beyond its containers: the figures for RuntimeClass's overhead.podFixed.
# Usage: overhead.sh [SECONDS], as root, after `make build`: starts one sandbox with a `sleep`, waits until it idles, and adds up what its
# processes hold, and what processor time they take in that many seconds (default 30). KATA_CONF_FILE as usual.
# shellcheck source=lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

seconds=${1:-30}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "usage: overhead.sh [SECONDS]"
[ "$(id -u)" = 0 ] || fail "this must be run as root, as a container runtime is"
runtime=$stage/bin/kata-runtime
[ -x "$runtime" ] || fail "$runtime does not exist; run \`make build\` first"
"$top/scripts/rootfs.sh"
work=$(mktemp -d)
end() {
    "$runtime" --root "$work/state" delete --force overhead 2>/dev/null || :
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM
mkdir "$work/bundle"
"$runtime" spec --bundle "$work/bundle"
sed -i -e 's/"terminal": true/"terminal": false/' -e "s|\"path\": \"rootfs\"|\"path\": \"$cache/rootfs\"|" \
    -e 's|^\([[:space:]]*\)"sh"$|\1"sleep", "1000"|' "$work/bundle/config.json"
say "starting a sandbox"
"$runtime" --root "$work/state" run --detach --bundle "$work/bundle" overhead </dev/null >"$work/out" 2>&1 ||
    fail "the sandbox does not start: $(cat "$work/out")"
# The file server gives back what it has of the guest's after a second without requests.
sleep 5

state=$work/state/overhead/state.json
held() { awk -v name="$1:" '$1 == name { print $2 }' "/proc/$2/smaps_rollup"; }
ticks() { for pid in "${pids[@]}"; do sed 's/.*) //' "/proc/$pid/stat"; done | awk '{ sum += $12 + $13 } END { print sum }'; }
# The first is kata-shim, whose part is the shim's own in a pod; the others by the names of their objects.
mapfile -t pids < <(sed -n 's/^ *"pid": \([0-9]*\),*$/\1/p' "$state")
[ ${#pids[@]} = 4 ] || fail "$state names ${#pids[@]} processes, 4 are expected: $(cat "$state")"
total=0
printf '%-58s %9s\n' "memory of an idle sandbox, KiB (PSS)" ""
for pid in "${pids[@]}"; do
    kib=$(held Pss "$pid")
    printf '  %-56s %9s\n' "$(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -d' ' -f1 | sed 's|.*/||')" "$kib"
    total=$((total + kib))
done
vmm=$(sed -n '/"vmm"/,/}/s/^ *"pid": \([0-9]*\),*$/\1/p' "$state")
guest=$(awk '/^[0-9a-f]+-/ { inside = /memfd:/ } inside && $1 == "Rss:" { if ($2 > most) most = $2 } END { print most + 0 }' "/proc/$vmm/smaps")
printf '  %-56s %9s\n' "all; of it the guest's kernel and agent: $guest" "$total"
before=$(ticks)
sleep "$seconds"
cpu=$((($(ticks) - before) * 1000 / $(getconf CLK_TCK) / seconds))
printf '  %-56s %9s\n' "processor time in $seconds s, thousandths of a processor" "$cpu"
# Rounded up: memory to 10 MiB, the processor to a hundredth.
printf 'podFixed:\n  memory: %sMi\n  cpu: %sm\n' "$(((total / 1024 / 10 + 1) * 10))" "$(((cpu / 10 + 1) * 10))"
