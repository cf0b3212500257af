#!/usr/bin/env bash
# Runs containerd's own tests of a runtime through our staged shim and through runc's, after building them from Debian's source package
# into CACHE/contest/VERSION. Go and the libraries that the source wants are unpacked beside it, not installed. apt checks every file
# against the archive's signed lists. Building is quick when nothing is missing; can be interrupted and repeated.
# Usage: contest.sh [build [client|cri] | run [client|cri [TEST...]] | resume [client|cri]]: builds and runs both unless told otherwise; with
# names, only those tests; resume leaves out what ended well before. What each came to is kept in target/tmp/contest.
. "$(dirname "$0")/lib.sh"

action=${1:-}
[[ $action =~ ^(|build|run|resume)$ && ${2:-} =~ ^(|client|cri)$ && ($# -le 2 || $action = run) ]] ||
    fail "usage: contest.sh [build [client|cri] | run [client|cri [TEST...]] | resume [client|cri]]"
run() {
    [ "$action" != build ] || exit 0
    [ "$(id -u)" = 0 ] || fail "containerd's tests need root; run this as root"
    cd "$top"
    local suites=(client cri) IFS='|'
    [ -z "${1:-}" ] || suites=("$1")
    [ -z "${2:-}" ] || export KATA_CONTEST="^(${*:2})\$"
    [ "$action" != resume ] || export KATA_CONTEST_RESUME=1
    exec cargo test -p engines --test contest -- --nocapture --test-threads 1 --exact "${suites[@]}"
}
[[ ! $action =~ ^(run|resume)$ ]] || run "${@:2}"

suite=trixie
wanted=1.7
output=$cache/contest/$wanted
work=$cache/contest/$wanted.new
package=github.com/containerd/containerd
# The tests are told to ask a registry on the machine itself: -image-list, which is meant for that, is read too late by the client's.
registry=localhost:5000
recipe="2 $suite $wanted $registry"

missing=()
for tests in client cri; do
    [[ ${2:-$tests} != "$tests" || "$(cat "$output/$tests.recipe" 2>/dev/null)" = "$recipe" ]] || missing+=("$tests")
done
[ "${#missing[@]}" != 0 ] || run
mkdir -p "$(dirname "$work")"
own_apt contest "$(debian_architecture "$(uname -m)")" "$suite"
own_sources contest
show() { apt-cache "${own_apt[@]:2}" "$@"; }

version=$(show showsrc containerd | sed -n 's/^Version: //p' | head -n 1)
[[ $version = "$wanted"* ]] || fail "Debian $suite has the source of containerd ${version:-(none)}, the tests know $wanted*; contest.sh needs another suite"
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work/debs" "$work/root" "$work/go/src/$(dirname "$package")"

# Only what is Go: the C libraries and tools among the build's dependencies are for other parts.
mapfile -t depends < <(show showsrc containerd | sed -n 's/^Build-Depends: //p' | head -n 1 | tr ',' '\n' |
    sed 's/[|(].*//; s/[[:space:]]//g' | grep '^golang-.*-dev$')
mapfile -t packages < <(go_packages golang-go "${depends[@]}")
[ "${#packages[@]}" -gt "${#depends[@]}" ] || fail "apt does not resolve what containerd $version is built with"
say "contest: the source of containerd $version, Go and ${#depends[@]} libraries with what they need: ${#packages[@]} packages"
(cd "$work/debs" && quietly "${own_apt[@]}" download "${packages[@]}")
unpack "$work/debs" "$work/root"
source=$work/go/src/$package
source_package containerd "$work" "$source"
# shellcheck disable=SC2016 # \1 is sed's
sed -i -E "s#\"(ghcr\.io|registry\.k8s\.io)/#\"$registry/#" "$source/integration/images/image_list.go" "$source/integration/client/container_linux_test.go"

say "contest: building the tests: ${missing[*]}"
export GOROOT GOPATH GOCACHE GO111MODULE=off GOTOOLCHAIN=local GOPROXY=off CGO_ENABLED=0 GOFLAGS=-p=2
GOROOT=$(echo "$work"/root/usr/lib/go-1.*)
GOPATH=$work/go:$work/root/usr/share/gocode
GOCACHE=$work/cache
cd "$source"
declare -A directories=([client]=./integration/client [cri]=./integration)
mkdir -p "$output"
for tests in "${missing[@]}"; do
    quietly "$GOROOT/bin/go" test -c -vet=off -trimpath -ldflags=-s -o "$work/$tests.test" "${directories[$tests]}"
    mv "$work/$tests.test" "$output/$tests.test"
    printf '%s\n' "$recipe" >"$output/$tests.recipe"
done
rm -rf "$work"
run
