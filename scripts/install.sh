#!/usr/bin/env bash
# Installs what was staged, or removes exactly what was installed. Usage: install.sh install|uninstall
# PREFIX (default /usr/local) and DESTDIR as usual. What was installed, and which directories were made for it, is noted in
# PREFIX/share/kata-containers/.installed.
. "$(dirname "$0")/lib.sh"

target=${DESTDIR:-}${PREFIX:-/usr/local}
manifest=$target/share/kata-containers/.installed

# make_directory PATH: makes it below the target, noting what did not exist.
make_directory() {
    [ ! -d "$target/$1" ] || return 0
    [ "$1" = . ] || make_directory "$(dirname "$1")"
    mkdir "$target/$1"
    printf 'd %s\n' "$1" >>"$notes"
}

remove() {
    local kind path
    # What was made last goes first.
    tac "$manifest" | while read -r kind path; do
        if [ "$kind" = f ]; then
            rm -f "$target/$path"
        else
            # The manifest lies in one of them, and somebody may have put something of his own into another.
            [ "$target/$path" != "$(dirname "$manifest")" ] || rm -f "$manifest"
            [ ! -d "$target/$path" ] || rmdir --ignore-fail-on-non-empty "$target/$path"
        fi
    done
    rm -f "$manifest"
}

case ${1:-} in
install)
    [ -x "$stage/bin/kata-runtime" ] || fail "nothing is built; run \`make build\` first"
    # An older version's files that this one does not have must not stay.
    [ ! -e "$manifest" ] || remove
    mkdir -p "$target"
    notes=$(mktemp)
    trap 'rm -f "$notes"' EXIT
    make_directory share/kata-containers
    # Noted before it is done, so that an interrupted installation can be removed.
    cp "$notes" "$manifest"
    notes=$manifest
    trap - EXIT
    cd "$stage"
    # What is there for the tests only is no part of the product.
    find bin share lib -not -type d -not -name '.*' -not -name '*-debian.*' 2>/dev/null | LC_ALL=C sort | while read -r path; do
        make_directory "$(dirname "$path")"
        printf 'f %s\n' "$path" >>"$manifest"
        # Replaced by renaming: a running sandbox keeps the file that it has open.
        rm -f "$target/$path"
        cp -P "$path" "$target/$path"
    done
    say "installed below $target"
    ;;
uninstall)
    [ -e "$manifest" ] || fail "$manifest does not exist: nothing was installed below $target by \`make install\`"
    remove
    say "removed from $target"
    ;;
*) fail "usage: install.sh install|uninstall" ;;
esac
