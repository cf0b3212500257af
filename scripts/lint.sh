#!/usr/bin/env bash
# Formatting, lints, scripts, and the length of files.
. "$(dirname "$0")/lib.sh"

cd "$top"
say "cargo fmt --check"
cargo fmt --all --check
say "cargo clippy"
cargo clippy --workspace --all-targets -- -D warnings
say "shellcheck"
shellcheck -x -P scripts scripts/*.sh packaging/*/*.sh tests/lab/system/usr/local/sbin/lab-agent .ci/run
say "files of over 800 lines"
long=$(git ls-files '*.rs' '*.sh' '*.py' | xargs wc -l | awk '$2 != "total" && $1 > 800 { print $2 ": " $1 " lines" }')
[ -z "$long" ] || fail "too long: $long"
