#!/usr/bin/env bash
# Looks for bytes that break a reader of foreign bytes (docs/fuzzing.md): each target for FUZZ_SECONDS (60), FUZZ_JOBS (1) of them side by
# side. What breaks one is kept in fuzz/artifacts, what a run has learned in the project's cache, for the next, and with FUZZ_KEEP=1 in
# fuzz/learned, for other machines. Each target that has come to its end is added to the table in docs/fuzzing.md. Usage: fuzz.sh [TARGET...]
. "$(dirname "$0")/lib.sh"

cd "$top"
seconds=${FUZZ_SECONDS:-60} jobs=${FUZZ_JOBS:-1}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "FUZZ_SECONDS is $seconds; a number of seconds is expected"
[[ $jobs =~ ^[1-9][0-9]*$ ]] || fail "FUZZ_JOBS is $jobs; a number of targets to run side by side is expected"
[[ ${FUZZ_KEEP:-} =~ ^1?$ ]] || fail "FUZZ_KEEP is $FUZZ_KEEP; 1 or nothing is expected"
# Each target's name and what it reads.
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

# add TARGET SECONDS PROCESSOR EXECUTIONS FINDINGS: adds these figures to the target's row, in the order that the targets have.
add() {
    TABLE=$table awk -v target="$1" -v new="$2 $3 $4 $5" '
        function add_to(name, figures) {
            for (at = 1; at <= 4; at++) sum[name, at] += figures[at]
            has[name] = 1
        }
        /^<!-- end -->$/ {
            split(new, figures, " ")
            add_to(target, figures)
            print "| target | reads | seconds | of them on a processor | executions | findings |"
            print "| --- | --- | --- | --- | --- | --- |"
            count = split(ENVIRON["TABLE"], lines, "\n")
            for (line = 1; line <= count; line++) {
                split(lines[line], known, "\t")
                if (known[1] in has)
                    printf "| `%s` | %s | %.0f | %.0f | %.0f | %.0f |\n", known[1], known[2],
                        sum[known[1], 1], sum[known[1], 2], sum[known[1], 3], sum[known[1], 4]
            }
            inside = 0
        }
        inside && /^\| `/ {
            split($0, cells, / *\| */)
            gsub(/`/, "", cells[2])
            for (at = 1; at <= 4; at++) figures[at] = cells[at + 3]
            add_to(cells[2], figures)
        }
        !inside
        /^<!-- table -->$/ { inside = 1 }' docs/fuzzing.md >"$own/fuzzing.md"
    cat "$own/fuzzing.md" >docs/fuzzing.md
}

# What one input may take of a processor, and by the clock, of which targets that share the processors need more.
limit_seconds=20 processors=$(nproc)
clock_seconds=$((limit_seconds * ((jobs + processors - 1) / processors)))

# become TARGET SECONDS ARGUMENT...: becomes the target's program, for so long at most: one that is stuck in a system call does not see its own
# deadline.
become() {
    exec nice -n 19 timeout --kill-after 10 "$2" "$programs/$1" -rss_limit_mb=1024 -malloc_limit_mb=64 \
        -artifact_prefix="fuzz/artifacts/$1/" "${@:3}"
}

# Runs one input again, which took longer than it may by the clock: the processors may have been others' for as long. Now its time on one
# counts, and the clock only for one that does nothing.
try_again() (
    ulimit -t "$limit_seconds"
    become "$1" $((15 * clock_seconds)) -timeout=0 "$2"
)

# By process: its target. By target: when it was begun, and its row in the end.
declare -A running=() begun=() rows=()
passed=0 failed=0
end_all() {
    [ ${#running[@]} = 0 ] || kill "${!running[@]}" 2>/dev/null || true
    wait
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

begin() {
    local target=$1 learned=$cache/fuzz/corpus/$1 options
    mkdir -p "$learned" "fuzz/artifacts/$target"
    if [ -z "$(ls -A "$learned")" ] && [ -e "fuzz/learned/$target.tar.xz" ]; then
        tar -xJf "fuzz/learned/$target.tar.xz" -C "$learned"
    fi
    options=(-timeout="$clock_seconds" -max_total_time="$seconds" -max_len=16384 -print_final_stats=1)
    [ ! -e "fuzz/dictionaries/$target" ] || options+=(-dict="fuzz/dictionaries/$target")
    say "$target: $seconds s"
    begun[$target]=$(date +%s)
    (
        status=0
        become "$target" $((seconds + 300)) "${options[@]}" "$learned" "fuzz/corpus/$target" >"$own/logs/$target.log" 2>&1 &
        trap 'kill $!; wait $!' TERM
        wait $! || status=$?
        times >"$own/logs/$target.times"
        exit "$status"
    ) &
    running[$!]=$target
}

# Waits for one to end.
finish() {
    local process target log status=0 findings=0 took used executions slow
    wait -n -p process "${!running[@]}" || status=$?
    target=${running[$process]}
    log=$own/logs/$target.log
    unset "running[$process]"
    took=$(($(date +%s) - begun[$target]))
    # The second line is of the processes that were waited for: user's and system's, as 1m2.345s.
    used=$(awk 'NR == 2 { for (at = 1; at <= 2; at++) { split($at, part, /[ms]/); sum += part[1] * 60 + part[2] } printf "%.0f", sum }' \
        "$own/logs/$target.times")
    if [ "$status" != 0 ]; then
        slow=$(sed -n 's/.*Test unit written to \(.*\/timeout-.*\)/\1/p' "$log" | tail -n 1)
        if [ -n "$slow" ] && try_again "$target" "$slow" >>"$log" 2>&1; then
            echo "$target: ended early, by an input that waited for a processor for most of $clock_seconds s: run it again" >&2
            rm "$slow"
        else
            findings=1
            tail -n 25 "$log" >&2
            echo "$target: broken; the input is in fuzz/artifacts/$target, the whole log is $log" >&2
        fi
    fi
    executions=$(figure "$log" number_of_executed_units)
    if [ -z "$executions" ]; then executions=$(sed -n 's/^#\([0-9]*\)\t.*/\1/p' "$log" | tail -n 1); fi
    executions=${executions:-0}
    echo "$target: $executions executions in $took s ($used of a processor), $findings findings"
    if [ "$findings" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    rows[$target]="| \`$target\` | $took | $used | $executions | $findings |"
    add "$target" "$took" "$used" "$executions" "$findings"
}

# keep TARGET: keeps in the repository what all its runs here have learned: few inputs that get as far as all of them. Their names are numbers,
# since hashes do not compress.
keep() {
    local target=$1 few=$own/few log=$own/logs/$1.keep count=0 input
    say "$target: keeping what was learned"
    rm -rf "$few"
    mkdir -p "$few" fuzz/learned
    (become "$target" 3600 -timeout="$clock_seconds" -set_cover_merge=1 "$few" "$cache/fuzz/corpus/$target" "fuzz/corpus/$target") >"$log" 2>&1 ||
        fail "$target cannot be merged; see $log"
    for input in "$few"/*; do
        mv "$input" "$few/$count"
        count=$((count + 1))
    done
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$few" -c . | xz -9e >"$own/few.tar.xz"
    mv "$own/few.tar.xz" "fuzz/learned/$target.tar.xz"
    echo "$target: $count inputs, $(stat -c %s "fuzz/learned/$target.tar.xz") bytes"
}

for target in "${targets[@]}"; do
    [ ${#running[@]} -lt "$jobs" ] || finish
    begin "$target"
done
while [ ${#running[@]} != 0 ]; do finish; done
[ -z "${FUZZ_KEEP:-}" ] || for target in "${targets[@]}"; do keep "$target"; done

printf '\n%s\n%s\n' '| target | seconds | of them on a processor | executions | findings |' '| --- | --- | --- | --- | --- |'
for target in "${targets[@]}"; do echo "${rows[$target]}"; done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
