#!/bin/sh
# Stands for every program that kata-deploy calls, below names of links to this file: counts the calls in FAULT_DIR, and
# lets the one of number FAULT_AT fail, or kills kata-deploy in its place. Bash would be slower to start.
printf . >>"$FAULT_DIR/calls"
size=$(/usr/bin/stat -c %s "$FAULT_DIR/calls")
# Programs of a pipeline count at the same time, so a number may be skipped; making a directory succeeds once.
if [ "$size" -ge "$FAULT_AT" ] && /bin/mkdir "$FAULT_DIR/once" 2>/dev/null; then
    printf '%s %s\n' "${0##*/}" "$*" >"$FAULT_DIR/done"
    if [ "$FAULT_HOW" = kill ]; then
        /bin/kill -KILL "$(/usr/bin/cat "$FAULT_DIR/pid")"
    fi
    echo "${0##*/}: this call was told to fail" >&2
    exit 1
fi
PATH=${PATH#*:}
exec "${0##*/}" "$@"
