# shellcheck shell=bash
# What the scripts share. Source it; it sets the shell's options.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${KATA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kata}
stage=${KATA_STAGE:-$top/target/kata}
debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg
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

# unpack DIRECTORY ROOT: the Debian packages in a directory, into a root whose /bin and its like may be links.
unpack() {
    local package
    for package in "$1"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink --no-same-owner -C "$2"
    done
}

# The architecture's name in Debian.
debian_architecture() {
    case $1 in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    s390x) echo s390x ;;
    ppc64le) echo ppc64el ;;
    *) fail "unknown architecture $1; known are x86_64, aarch64, s390x and ppc64le" ;;
    esac
}

# own_apt NAME ARCHITECTURE [SUITE...]: sets the array `own_apt` to an apt-get with package lists below CACHE/apt/NAME, so that the
# machine's sources, architectures and installed packages neither matter nor change. Of Debian's ARCHITECTURE; the suites
# are those of the machine's own sources unless named.
own_apt() {
    local dir=$cache/apt/$1 architecture=$2 targets uri suite component
    shift 2
    # shellcheck disable=SC2016 # the $ is apt's
    targets=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT) $(LABEL)' 'Created-By: Packages' 'Component: main' |
        grep ' Debian\(-Security\)\?$') || fail "apt's sources name no mirror of Debian"
    rm -rf "$dir/parts"
    mkdir -p "$dir/parts" "$dir/lists/partial" "$dir/cache/archives/partial"
    if [ $# = 0 ]; then
        while read -r uri suite component _; do
            printf 'deb [signed-by=%s] %s %s %s\n' "$debian_keys" "$uri" "$suite" "$component"
        done <<<"$targets"
    else
        # The main archive has every suite, the security archive only that of its release.
        uri=$(sed -n 's/^\([^ ]*\) .* Debian$/\1/p' <<<"$targets" | head -n 1)
        [ -n "$uri" ] || fail "apt's sources name no mirror of Debian's main archive"
        for suite; do
            printf 'deb [signed-by=%s] %s %s main\n' "$debian_keys" "$uri" "$suite"
        done
    fi >"$dir/parts/own.list"
    # shellcheck disable=SC2034 # for those who source this
    own_apt=(apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$dir/parts" -o "Dir::State::lists=$dir/lists"
        -o "Dir::Cache=$dir/cache" -o Dir::State::status=/dev/null -o "APT::Architecture=$architecture"
        -o "APT::Architectures::=$architecture" -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Debug::NoLocking=1)
}

# own_sources NAME: adds the source packages to the lists that `own_apt NAME` chose, and reads them.
own_sources() {
    local parts=$cache/apt/$1/parts
    sed 's/^deb /deb-src /' "$parts/own.list" >"$parts/source.list"
    say "$1: updating the package lists"
    quietly "${own_apt[@]}" update
}

# source_package PACKAGE DIR TARGET: downloads a source package into DIR and unpacks it with Debian's patches into TARGET.
source_package() {
    local package=$1 dir=$2 target=$3 part patch
    # The two archives by themselves: their checksums are in the signed list, the description has nothing more that is needed.
    for part in --tar-only --diff-only; do (cd "$dir" && quietly "${own_apt[@]}" --download-only "$part" source "$package"); done
    mkdir "$target"
    tar -xf "$dir/$package"_*.orig.tar.xz --strip-components=1 --no-same-owner -C "$target"
    tar -xf "$dir/$package"_*.debian.tar.xz --no-same-owner -C "$target"
    while read -r patch; do
        [[ -z $patch || $patch = '#'* ]] || quietly patch -d "$target" -p1 -i "$target/debian/patches/$patch"
    done < <(cat "$target/debian/patches/series" 2>/dev/null)
}

# go_packages PACKAGE...: the names of Go's packages that these are or need.
go_packages() {
    "${own_apt[@]}" --print-uris --yes install "$@" | sed -n "s/^'.*' \(golang-[^_]*\)_.*/\1/p"
}

# make_from OUTPUT SOURCE... -- COMMAND...: runs the command unless the output was made from just these sources, told by
# path, size and time. Comparing ages is not enough: an unpacked kernel is as old as its package.
make_from() {
    local output=$1 sources=() stamp
    stamp=${output#"$stage"/}
    shift
    while [ "$1" != -- ]; do
        sources+=("$1")
        shift
    done
    shift
    stamp=$stage/.${stamp//\//-}.from
    stat -c '%n %s %Y' "${sources[@]}" >"$stamp.new"
    if [ ! -e "$output" ] || ! cmp -s "$stamp.new" "$stamp"; then
        say "making $(basename "$output") from ${sources[0]}"
        "$@" --output "$output"
        mv "$stamp.new" "$stamp"
    else
        rm "$stamp.new"
    fi
}
