# shellcheck shell=bash
# What the scripts share. Source it; it sets the shell's options.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${KATA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kata}
stage=${KATA_STAGE:-$top/target/kata}
export KATA_CACHE=$cache KATA_STAGE=$stage

say() { printf '%s\n' "==> $*"; }
fail() {
    printf '%s\n' "error: $*" >&2
    exit 1
}

# Runs a command as root: directly, or by sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root: $*; run it as root or install sudo"
    fi
}

# Runs a command whose output matters only if it fails. The file that takes the output has no name any more, so that
# nothing is left of it if this is interrupted.
quietly() {
    local log
    log=$(mktemp)
    exec 7<>"$log"
    rm -f "$log"
    if ! "$@" >&7 2>&1 7>&-; then
        cat "/proc/$BASHPID/fd/7" >&2
        fail "failed: $*"
    fi
    exec 7>&-
}

# One script at a time works on the cache; the others wait for it.
lock_cache() {
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock -n 9 || {
        say "waiting for another set-up on $cache"
        flock -w 1800 9 || fail "another set-up holds $cache/lock for half an hour"
    }
}
