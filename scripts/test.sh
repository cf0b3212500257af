#!/usr/bin/env bash
# Runs every test and ends with the plain line "N passed, N failed". KATA_CONF_FILE chooses what the end-to-end tests run with:
# another kernel, guest image or machine.
. "$(dirname "$0")/lib.sh"

cd "$top"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
if [ $# = 0 ]; then
    say "unit tests"
    cargo test --workspace --exclude e2e --exclude bench --no-fail-fast 2>&1 | tee "$log" || status=1
else
    export KATA_NO_SKIP=1
fi
say "end-to-end tests, in virtual machines beside runc"
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "the end-to-end tests need root, as runc does; run this as root or install sudo"
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${triple}_RUNNER=sudo -E"
fi
cargo test -p e2e "${@/#/--test=}" --no-fail-fast -- --test-threads 2 2>&1 | tee -a "$log" || status=1
say "Debian packages, in a clean Debian system"
if packaging/deb/test.sh 2>&1 | tee -a "$log"; then
    echo "test result: ok. 1 passed; 0 failed (packages)" >>"$log"
else
    echo "test result: FAILED. 0 passed; 1 failed (packages)" >>"$log"
    status=1
fi
read -r passed failed < <(sed -n 's/^test result:.* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' "$log" |
    awk '{ passed += $1; failed += $2 } END { print passed + 0, failed + 0 }')
if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
    echo "the tests could not all be run; see above" >&2
    failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
