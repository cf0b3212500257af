#!/usr/bin/env bash
# Looks for bytes that break a reader of foreign bytes (docs/fuzzing.md): each target in turn, for FUZZ_SECONDS (60) each. What breaks one
# is kept in fuzz/artifacts. All targets together also write the table in docs/fuzzing.md. Usage: fuzz.sh [TARGET...]
. "$(dirname "$0")/lib.sh"

cd "$top"
seconds=${FUZZ_SECONDS:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "FUZZ_SECONDS is $seconds; a number of seconds is expected"
table=$(sed -n 's/.* name: "\([a-z_]*\)", reads: "\([^"]*\)".*/\1\t\2/p' tests/fuzzing/src/lib.rs)
mapfile -t known < <(cut -f 1 <<<"$table")
targets=("$@")
[ $# != 0 ] || targets=("${known[@]}")
for target in "${targets[@]}"; do
    [[ " ${known[*]} " == *" $target "* ]] || fail "$target is no target; there are ${known[*]}"
done

# The compiler that the product is built with, allowed to instrument code, which otherwise only a nightly one is.
export RUSTC_BOOTSTRAP=1
own=$top/target/fuzz
mkdir -p "$own/logs"
cargo_fuzz() { "$cache/fuzz/bin/cargo-fuzz" fuzz "$@"; }
say "building the fuzz targets"
if [ $# = 0 ]; then cargo_fuzz build --fuzz-dir fuzz --target-dir "$own"; else
    for target in "${targets[@]}"; do cargo_fuzz build --fuzz-dir fuzz --target-dir "$own" "$target"; done
fi
programs=$own/$(rustc -vV | sed -n 's/^host: //p')/release

# figure LOG NAME: one of libFuzzer's own figures of a run.
figure() { sed -n "s/^stat::$2: *//p" "$1" | tail -n 1; }

passed=0 failed=0 rows=()
for target in "${targets[@]}"; do
    log=$own/logs/$target.log
    mkdir -p "$own/corpus/$target" "fuzz/artifacts/$target"
    say "$target: $seconds s"
    options=(-max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -malloc_limit_mb=64 -max_len=16384 -print_final_stats=1
        -artifact_prefix="fuzz/artifacts/$target/")
    [ ! -e "fuzz/dictionaries/$target" ] || options+=(-dict="fuzz/dictionaries/$target")
    before=$(date +%s) findings=0
    # A target that is stuck in a system call does not see its own deadline.
    if ! nice -n 19 timeout --kill-after 10 $((seconds + 300)) "$programs/$target" "${options[@]}" \
        "$own/corpus/$target" "fuzz/corpus/$target" >"$log" 2>&1; then
        findings=1
        tail -n 25 "$log" >&2
        echo "$target: broken; the input is in fuzz/artifacts/$target, the whole log is $log" >&2
    fi
    took=$(($(date +%s) - before))
    executions=$(figure "$log" number_of_executed_units)
    if [ -z "$executions" ]; then executions=$(sed -n 's/^#\([0-9]*\)\t.*/\1/p' "$log" | tail -n 1); fi
    executions=${executions:-0}
    echo "$target: $executions executions in $took s, $findings findings"
    if [ "$findings" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    reads=$(sed -n "s/^$target\t//p" <<<"$table")
    rows+=("| \`$target\` | $reads | $took | $executions | $findings |")
done
printf '\n'
printf '%s\n' '| target | reads | seconds | executions | findings |' '| --- | --- | --- | --- | --- |' "${rows[@]}" | tee "$own/table"
if [ $# = 0 ]; then
    # Between the two marks.
    sed -i -e '/^<!-- table -->$/,/^<!-- end -->$/{/^<!-- table -->$/{p;r '"$own/table"'
};/^<!-- end -->$/p;d}' docs/fuzzing.md
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
