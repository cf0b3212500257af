#!/usr/bin/env bash
# Runs every test and ends with the plain line "N passed, N failed".
# Usage: test.sh [TEST... | guests]: with names, only those end-to-end tests, and a test that cannot be run fails; guests: all of them in each
# of the guests that scripts/variants.sh makes.
#
# The end-to-end tests are run in the usual guest, and those that see what a guest is made of in each that scripts/variants.sh
# makes. KATA_CONF_FILE has them all run once, with that configuration: another kernel, guest image or machine.
. "$(dirname "$0")/lib.sh"

cd "$top"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "the end-to-end tests need root, as runc does; run this as root or install sudo"
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
fi

# tested NAME COMMAND...: one test that is no Rust program.
tested() {
    if "${@:2}" 2>&1 | tee -a "$log"; then
        echo "test result: ok. 1 passed; 0 failed ($1)" >>"$log"
    else
        echo "test result: FAILED. 0 passed; 1 failed ($1)" >>"$log"
        status=1
    fi
}

end_to_end() {
    [ -z "${triple:-}" ] || local -x "CARGO_TARGET_${triple}_RUNNER=sudo -E"
    cargo test -p e2e "${@/#/--test=}" --no-fail-fast -- --test-threads 2 2>&1 | tee -a "$log" || status=1
}

engines() {
    [ -z "${triple:-}" ] || local -x "CARGO_TARGET_${triple}_RUNNER=sudo -E"
    cargo test -p engines --no-fail-fast -- --test-threads 2 2>&1 | tee -a "$log" || status=1
}

# containerd's own tests of a runtime, those of its client: `make contest` runs the CRI's, too, and the control with runc.
contest() {
    [ -z "${triple:-}" ] || local -x "CARGO_TARGET_${triple}_RUNNER=sudo -E"
    "$top/scripts/contest.sh" build client &&
        KATA_ENGINES=kata cargo test -p engines --test contest -- --exact client 2>&1 | tee -a "$log" || status=1
}

# in_each_guest TEST...: all tests, without names.
in_each_guest() {
    say "guests to test in"
    local variants variant
    variants=$("$top/scripts/variants.sh") || fail "the guests of the tests cannot be made; see above"
    for variant in $variants; do
        say "end-to-end tests: $variant"
        # The long run is for one guest; the others show that it is the same with them.
        KATA_CYCLES=4 KATA_CONF_FILE=$stage/variants/$variant.toml end_to_end "$@"
    done
}

if [ "$*" = guests ]; then
    in_each_guest
elif [ $# != 0 ]; then
    KATA_NO_SKIP=1 end_to_end "$@"
else
    say "unit tests"
    cargo test --workspace --exclude e2e --exclude engines --no-fail-fast 2>&1 | tee "$log" || status=1
    say "end-to-end tests, in virtual machines beside runc"
    end_to_end
    say "container engines, through our shim beside runc's"
    engines
    say "containerd's own tests, through our shim"
    contest
fi
if [ $# = 0 ] && [ -z "${KATA_CONF_FILE:-}" ]; then
    # What the host does alone (deaths, refusals, hooks, streams) is the same whatever runs in the guest.
    in_each_guest agent network run shares
    say "end-to-end tests: a container's life with Debian's kernel; images have no part in it"
    KATA_CONF_FILE=$stage/variants/packaged-kernel.toml end_to_end lifecycle
    for image in kata-containers.img kata-containers-initrd.img; do
        say "self-check of the Debian image $image"
        tested "check $image" as_root "$stage/bin/kata-osbuilder" check "$stage/images/variants/$image"
    done
    say "Debian packages, in a clean Debian system"
    tested packages packaging/deb/test.sh
    say "Kubernetes: manifests, chart, image and node installer"
    # A call of every 15: all of them (KATA_FAULT_STEP=1) take half an hour.
    tested kubernetes env KATA_FAULT_STEP="${KATA_FAULT_STEP:-15}" packaging/kubernetes/test.sh
fi
read -r passed failed < <(sed -n 's/^test result:.* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' "$log" |
    awk '{ passed += $1; failed += $2 } END { print passed + 0, failed + 0 }')
if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
    echo "the tests could not all be run; see above" >&2
    failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
