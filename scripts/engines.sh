#!/usr/bin/env bash
# Unpacks container engines of several Debian releases side by side into CACHE/engines/NAME, without installing them: what
# the tests of the shim drive. apt checks every package against the archive's signed lists.
# Usage: engines.sh [NAME...]: all of them unless named. Quick when nothing is missing; can be interrupted and repeated.
. "$(dirname "$0")/lib.sh"

engines=$cache/engines
# name: suite, version it must be of, packages. The version is that of the first package. runc comes from the machine's own release:
# those of newer ones need a newer C library than it has.
known=(
    "containerd-1.6: bookworm 1.6. containerd runc"
    "containerd-1.7: trixie 1.7. containerd"
    "containerd-2.1: sid 2.1. containerd"
    "docker-20: bookworm 20.10. docker.io containerd runc tini"
    "docker-26: trixie 26. docker.io docker-cli containerd tini"
    "docker-28: sid 28. docker.io docker-cli containerd tini"
    "podman-4: bookworm 4.3. podman conmon netavark aardvark-dns catatonit golang-github-containers-common golang-github-containers-image libgpgme11 libassuan0 libdevmapper1.02.1 libsubid4 slirp4netns libslirp0 uidmap"
    "cni: trixie 1. containernetworking-plugins"
    "busybox: trixie 1:1. busybox-static"
)

fetch() {
    local name=$1 suite=$2 wanted=$3 package version directory=$engines/$1 work=$engines/$1.new recipe="1 $*"
    shift 3
    [ "$(cat "$directory/.recipe" 2>/dev/null)" = "$recipe" ] && return
    own_apt "engines-$suite" "$(debian_architecture "$(uname -m)")" "$suite"
    if [[ " $updated " != *" $suite "* ]]; then
        say "engines: updating the package lists of Debian $suite"
        quietly "${own_apt[@]}" update
        updated+=" $suite"
    fi
    version=$(apt-cache "${own_apt[@]:2}" show "$1" 2>/dev/null | sed -n 's/^Version: //p' | head -n 1)
    [ -n "$version" ] || fail "Debian $suite has no package $1; engines.sh needs another suite for $name"
    [[ $version = "$wanted"* ]] || fail "Debian $suite has $1 $version, the tests know $wanted*; engines.sh needs another suite for $name"
    say "engines: $name ($1 $version and ${#} packages in all)"
    rm -rf "$work"
    mkdir -p "$work/debs" "$work/root"
    (cd "$work/debs" && quietly "${own_apt[@]}" download "$@")
    unpack "$work/debs" "$work/root"
    rm -rf "$work/root/usr/share/"{doc,man,locale,bash-completion,lintian} "${directory:?}"
    printf '%s\n' "$version" >"$work/root/version"
    printf '%s\n' "$recipe" >"$work/root/.recipe"
    mv "$work/root" "$directory"
    rm -rf "$work"
}

mkdir -p "$engines"
trap 'rm -rf "$engines"/*.new' EXIT
updated=
for entry in "${known[@]}"; do
    name=${entry%%:*}
    [ $# = 0 ] || [[ " $* " = *" $name "* ]] || continue
    # shellcheck disable=SC2086 # the fields of an entry are words
    fetch "$name" ${entry#*: }
done
for name; do
    [ -d "$engines/$name" ] || fail "$name is no engine this script knows; known are: $(printf '%s ' "${known[@]%%:*}")"
done
