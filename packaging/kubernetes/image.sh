#!/usr/bin/env bash
# Makes the installer's image: a few Debian packages, kata-deploy, and the staged product in /opt/kata-artifacts.
# Usage: image.sh [--output DIRECTORY] [--tag NAME:TAG], after `make build`: DIRECTORY (default: target/kubernetes) gets
#   kata-deploy.tar  an OCI layout as an archive, with what Docker needs to load it as well
#   context/         the same as a context for Dockerfile
# Usage: image.sh --unpack ARCHIVE DIRECTORY: unpacks its layers.
# The Debian packages are downloaded once, into CACHE/installer; after that no network is needed. The same inputs give the same bytes.
# shellcheck source=lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

here=$top/packaging/kubernetes
output=$top/target/kubernetes
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$top/Cargo.toml")
tag=kata-deploy:$version
case ${1:-} in
--unpack)
    [ $# = 3 ] || fail "usage: image.sh --unpack ARCHIVE DIRECTORY"
    as_root python3 "$here/oci.py" unpack "$2" "$3"
    exit
    ;;
esac
while [ $# != 0 ]; do
    [ $# -ge 2 ] || fail "usage: image.sh [--output DIRECTORY] [--tag NAME:TAG]"
    case $1 in
    --output) output=$2 ;;
    --tag) tag=$2 ;;
    *) fail "usage: image.sh [--output DIRECTORY] [--tag NAME:TAG]" ;;
    esac
    shift 2
done
[[ $tag =~ ^[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9_][A-Za-z0-9._-]*$ ]] || fail "--tag $tag: NAME:TAG is expected"
for file in bin/kata-runtime bin/containerd-shim-kata-v2 share/kata-containers/vmlinux.container; do
    [ -e "$stage/$file" ] || fail "$stage/$file does not exist; run \`make build\` first"
done
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || stat -c %Y "$top/Cargo.lock")}
export SOURCE_DATE_EPOCH

# What kata-deploy calls, with what that needs.
wanted=(bash coreutils curl ca-certificates diffutils findutils grep libc-bin mawk sed util-linux)
base=$cache/installer
lock_cache
recipe="1 ${wanted[*]}"
if [ "$(cat "$base/.recipe" 2>/dev/null)" != "$recipe" ]; then
    say "the installer's image: downloading Debian packages"
    own_apt installer "$(dpkg --print-architecture)"
    rm -rf "$base.new"
    mkdir -p "$base.new/debs/partial" "$base.new/root/usr/bin"
    quietly "${own_apt[@]}" update
    quietly "${own_apt[@]}" -o "Dir::Cache::archives=$base.new/debs" --download-only -y install "${wanted[@]}"
    for dir in bin sbin lib lib64; do
        mkdir -p "$base.new/root/usr/$dir"
        ln -s "usr/$dir" "$base.new/root/$dir"
    done
    unpack "$base.new/debs" "$base.new/root"
    # Copyright files stay, the rest of the documentation goes.
    find "$base.new/root/usr/share/doc" \( -type f -o -type l \) ! -name copyright -delete
    find "$base.new/root/usr/share/doc" -type d -empty -delete
    rm -rf "$base.new/root/usr/share/"{man,locale,info,bash-completion,lintian,zsh} "$base.new/root/"{boot,home,media,srv,mnt}
    ln -sf mawk "$base.new/root/usr/bin/awk"
    mkdir -p "$base.new/root/"{host,tmp,proc,sys,dev,run,root,etc}
    chmod 1777 "$base.new/root/tmp"
    printf '%s\n' "$recipe" >"$base.new/.recipe"
    rm -rf "$base.new/debs" "$base"
    mv "$base.new" "$base"
fi

mkdir -p "$output"
work=$(mktemp -d "$output/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/context/root/opt/kata-artifacts"
cp -a "$base/root/." "$work/context/root"
install -D -m 755 "$here/kata-deploy.sh" "$work/context/root/usr/local/bin/kata-deploy"
cp "$here/Dockerfile" "$work/context"
# The product as `make install` takes it: without what is there for the tests only.
parts=(bin share)
[ ! -d "$stage/lib" ] || parts+=(lib)
(cd "$stage" && find "${parts[@]}" -not -type d -not -name '.*' -not -name '*-debian.*' -not -path 'share/man/*' -print0 |
    tar -c --null --no-recursion -T -) | tar -x -C "$work/context/root/opt/kata-artifacts"
chmod -R u=rwX,go=rX "$work/context/root/opt/kata-artifacts"
python3 "$here/oci.py" pack "$work/context/root" "$work/kata-deploy.tar" "$tag" "$(dpkg --print-architecture)"
rm -rf "$output/context"
mv "$work/context" "$output/context"
mv "$work/kata-deploy.tar" "$output/kata-deploy.tar"
say "image $tag: $output/kata-deploy.tar ($(($(stat -c %s "$output/kata-deploy.tar") >> 20)) MiB); its parts: $output/context"
