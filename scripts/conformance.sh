#!/usr/bin/env bash
# Runs the test suites of runc, crun and Podman, from Debian's source packages, through our staged command line and through runc's or crun's
# own, after fetching them into CACHE/conformance/SUITE. What the suites use besides (bats, jq, gawk, the runtimes, Go to compile a helper) is
# unpacked beside them, not installed. apt checks every file against the archive's signed lists. Images the suites would download are made
# here. Fetching is quick when nothing is missing; can be interrupted and repeated.
# Usage: conformance.sh [build | run [SUITE [FILTER]]]: both unless named. SUITE is runc, crun or podman; FILTER is a part of a file's name.
. "$(dirname "$0")/lib.sh"

action=${1:-}
[[ $action =~ ^(|build|run)$ && ${2:-} =~ ^(|runc|crun|podman)$ ]] || fail "usage: conformance.sh [build | run [runc|crun|podman [FILTER]]]"
run() {
    [ "$action" != build ] || exit 0
    [ "$(id -u)" = 0 ] || fail "the suites need root; run this as root"
    cd "$top"
    export KATA_CONFORMANCE=${2:-${KATA_CONFORMANCE:-}}
    exec cargo test -p engines --test conformance -- --nocapture --test-threads 1 ${1:+--exact "$1"}
}
[ "$action" != run ] || run "${2:-}" "${3:-}"

suite=bookworm
output=$cache/conformance
work=$output.new
# name: source package, the version that the list of what is left out was made for.
known=("runc: runc 1.1.5" "crun: crun 1.8.1" "podman: libpod 4.3.1")
tools=(bats busybox-static crun gawk jq libjq1 libonig5 libsigsegv2 libmpfr6 libyajl2 runc)
# What Podman's suite calls besides.
tools+=(buildah liblua5.3-0 libpcap0.8 libwrap0 ncat skopeo socat)
recvtty=(golang-go golang-github-containerd-console-dev golang-github-cyphar-filepath-securejoin-dev golang-github-sirupsen-logrus-dev
    golang-github-urfave-cli-dev golang-golang-x-sys-dev)
recipe="4 $suite ${known[*]} ${tools[*]}"

[ "$(cat "$output/.recipe" 2>/dev/null)" != "$recipe" ] || run
own_apt conformance "$(debian_architecture "$(uname -m)")" "$suite"
own_sources conformance
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work/debs" "$work/go-debs" "$work/go/root" "$work/output/tools" "$work/sources"

for entry in "${known[@]}"; do
    read -r name package wanted <<<"${entry/:/}"
    version=$(apt-cache "${own_apt[@]:2}" showsrc "$package" | sed -n 's/^Version: //p' | head -n 1)
    [[ $version = "$wanted"* ]] || fail "Debian $suite has the source of $package ${version:-(none)}, the list knows $wanted"
    say "conformance: the source of $name $version"
    source_package "$package" "$work/sources" "$work/output/$name"
    printf '%s\n' "$version" >"$work/output/$name/.version"
done

say "conformance: what the suites use"
cd "$work/debs"
quietly "${own_apt[@]}" download "${tools[@]}"
unpack "$work/debs" "$work/output/tools"
rm -rf "$work/output/tools/usr/share/"{doc,man,locale}
ln -s ncat "$work/output/tools/usr/bin/nc"
# Programs whose libraries are beside them find them there, and only they.
libraries=$output/tools/usr/lib/$(uname -m)-linux-gnu
mkdir "$work/output/bin"
for program in usr/bin/crun usr/bin/gawk usr/bin/jq usr/sbin/runc; do
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$output/tools/$program" >"$work/output/bin/${program##*/}"
done
# The suites ask it for nothing but the architecture.
printf '#!/bin/sh\n[ "$*" = "env GOARCH" ] && echo %s\n' "$(debian_architecture "$(uname -m)")" >"$work/output/bin/go"
chmod 755 "$work/output/bin/"*

say "conformance: building runc's recvtty and crun's init"
cd "$work/go-debs"
mapfile -t packages < <(go_packages "${recvtty[@]}")
quietly "${own_apt[@]}" download "${packages[@]}"
unpack "$work/go-debs" "$work/go/root"
mkdir -p "$work/go/own/src/github.com/opencontainers"
ln -s "$work/output/runc" "$work/go/own/src/github.com/opencontainers/runc"
(
    export GOROOT GOPATH=$work/go/own:$work/go/root/usr/share/gocode GOCACHE=$work/go/cache GO111MODULE=off GOTOOLCHAIN=local GOPROXY=off CGO_ENABLED=0
    GOROOT=$(echo "$work"/go/root/usr/lib/go-1.*)
    cd "$work/go/own/src/github.com/opencontainers/runc/contrib/cmd/recvtty"
    quietly "$GOROOT/bin/go" build -trimpath -ldflags=-s -o recvtty .
)
# Its build finds out what the C library has, and the current one has it all.
echo '#define HAVE_ERROR_H 1' >"$work/config.h"
quietly gcc -static -I "$work" -o "$work/output/crun/tests/init" "$work/output/crun/tests/init.c"

# In place of the Python module of libmount, which Debian does not have: what the suite uses of it, to read a mountinfo.
cat >"$work/output/crun/tests/libmount.py" <<'END'
class Mount:
    def __init__(self, line):
        mount, file_system = line.split(" - ")
        fields = mount.split(" ")
        self.target, self.vfs_options, self.fs_options = fields[4], fields[5], file_system.split(" ")[2].strip()


class Table:
    def __init__(self, path):
        with open(path) as lines:
            self.mounts = [Mount(line) for line in lines if " - " in line]

    def find_target(self, target):
        return [mount for mount in self.mounts if mount.target == target][-1]
END

# The image that runc's suite downloads: busybox under all its names, with the users and directories of the original.
image=$work/image
mkdir -p "$image"/{bin,dev,etc,home,root,tmp,usr/bin,usr/sbin,var/spool/mail,var/www}
chmod 1777 "$image/tmp"
chmod 700 "$image/root"
cp "$work/output/tools/bin/busybox" "$image/bin/busybox"
for applet in $("$image/bin/busybox" --list); do
    [ -e "$image/bin/$applet" ] || ln "$image/bin/busybox" "$image/bin/$applet"
done
cat >"$image/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
END
cat >"$image/etc/group" <<'END'
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
wheel:x:10:root
www-data:x:33:
operator:x:37:
users:x:100:
nobody:x:65534:
END
images=$work/output/runc/tests/integration/testdata
tar -cJf "$images/busybox-$(debian_architecture "$(uname -m)").tar.xz" --owner=0 --group=0 -C "$image" .
# Only the case of hooks wants the other one, whose C library brings ldconfig.
mkdir "$work/libc-debs" "$work/libc"
cd "$work/libc-debs"
quietly "${own_apt[@]}" download base-files bash coreutils dash debianutils grep libacl1 libattr1 libc-bin libc6 libcrypt1 libgcc-s1 libgmp10 \
    libpcre2-8-0 libselinux1 libssl3 libtinfo6 mawk sed
unpack "$work/libc-debs" "$work/libc"
rm -rf "$work/libc/usr/share/"{doc,man,locale}
tar -cJf "$images/debian-$(debian_architecture "$(uname -m)").tar.xz" --owner=0 --group=0 -C "$work/libc" .

printf '%s\n' "$recipe" >"$work/output/.recipe"
rm -rf "$output"
mv "$work/output" "$output"
rm -rf "$work"
run "${2:-}" "${3:-}"
