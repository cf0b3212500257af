# shellcheck shell=bash
# shellcheck disable=SC2154 # cache is lib.sh's
# A clean Debian system that tests install into. Source it after lib.sh; `make_base` makes it once, in `base`.

suite=bookworm
# The distribution's QEMU, so that the packages' dependencies are there, and the oldest QEMU that is supported is tried.
include=qemu-system-x86
base=$cache/chroot/$suite

make_base() {
    [ -e "$base/.made" ] && return
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing; run \`scripts/setup.sh test\`"
    local mirror
    # shellcheck disable=SC2016 # the $ is apt's
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n1)
    [ -n "$mirror" ] || fail "apt's sources name no mirror of Debian, from which a clean system could be made"
    say "making a clean Debian $suite with $include (once, about 2 minutes): $base"
    mkdir -p "$cache/chroot"
    as_root rm -rf "$base" "$base.new"
    quietly as_root mmdebstrap --mode=root --variant=minbase --include="$include" --format=directory \
        --aptopt='APT::Install-Recommends "false"' "$suite" "$base.new" "$mirror"
    as_root mkdir -p "$base.new/mnt"
    as_root touch "$base.new/.made"
    as_root mv "$base.new" "$base"
}
