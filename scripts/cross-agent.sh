#!/usr/bin/env bash
# Builds the agent for a foreign architecture, static and stripped: CACHE/agent/ARCHITECTURE/kata-agent.
# Usage: cross-agent.sh ARCHITECTURE
#
# The compiler is the machine's own when it has the target's standard library or rustup can add it. Otherwise (no way to
# Rust's servers, or Rust from elsewhere) it is Debian's, unpacked below the cache; KATA_CROSS_RUST=debian asks for that.
. "$(dirname "$0")/lib.sh"

architecture=${1:-}
[ -n "$architecture" ] || fail "usage: cross-agent.sh ARCHITECTURE"
debian=$(debian_architecture "$architecture")
gnu=$architecture
[ "$architecture" != ppc64le ] || gnu=powerpc64le
triple=$gnu-unknown-linux-gnu
linker=$gnu-linux-gnu-gcc
command -v "$linker" >/dev/null || fail "$linker is missing; run \`scripts/setup.sh guest $architecture\`"

# Newest Debian whose Rust is recent enough for this workspace, and runs beside any other release from its own directory.
suites=(trixie trixie-backports)
rust=$cache/rust

has_std() { compgen -G "$1/lib/rustlib/$2/lib/libstd-*.rlib" >/dev/null; }

# add_std: lets rustup add the target's standard library. Its own deadlines are minutes for each of several tries.
add_std() {
    has_std "$(rustc --print sysroot)" "$triple" && return
    command -v rustup >/dev/null || return
    say "adding Rust's standard library for $architecture (rustup target add $triple)"
    timeout 180 rustup --quiet target add "$triple" && has_std "$(rustc --print sysroot)" "$triple"
}

# Unpacks Debian's compiler, with the libraries it runs with, into CACHE/rust.
unpack_rust() {
    local work=$rust.new version dir
    if ! "${own_apt[@]}" -s install rustc >/dev/null 2>&1; then
        say "Debian's Rust: fetching package lists of ${suites[*]}"
        quietly "${own_apt[@]}" update
    fi
    version=$(apt-cache "${own_apt[@]:2}" show -a rustc 2>/dev/null | sed -n 's/^Version: //p' | sort -V | tail -n 1)
    [ -n "$version" ] || fail "Debian's ${suites[*]} have no rustc"
    say "Debian's Rust: downloading rustc $version (about 150 MB)"
    rm -rf "$work"
    mkdir -p "$work/debs/partial" "$work/root/usr/lib" "$work/root/usr/lib64"
    # The standard library's dependencies are all that the compiler runs with; rustc's own would bring gcc, too.
    quietly "${own_apt[@]}" -t "${suites[-1]}" -o "Dir::Cache::archives=$work/debs" --download-only -y \
        install "libstd-rust-dev=$version"
    (cd "$work/debs" && quietly "${own_apt[@]}" download "rustc=$version")
    say "Debian's Rust: unpacking"
    for dir in lib lib64; do
        ln -s "usr/$dir" "$work/root/$dir"
    done
    unpack "$work/debs" "$work/root"
    rm -rf "$work/root/usr/share" "$rust"
    printf '%s\n' "$version" >"$work/root/version"
    mv "$work/root" "$rust"
    rm -rf "$work"
}

# Adds the target's standard library, which must be of the compiler's very version.
unpack_std() {
    local work=$rust.std version
    version=$(cat "$rust/version")
    own_apt "rust-$architecture" "$debian" "${suites[@]}"
    say "Debian's Rust: downloading its standard library for $architecture"
    rm -rf "$work"
    mkdir -p "$work/debs" "$work/root"
    quietly "${own_apt[@]}" update
    (cd "$work/debs" && quietly "${own_apt[@]}" download "libstd-rust-dev=$version")
    unpack "$work/debs" "$work/root"
    mv "$work/root/usr/lib/rustlib/$triple" "$rust/usr/lib/rustlib/$triple"
    rm -rf "$work"
}

# Sets RUSTC to Debian's compiler, run by its own dynamic loader.
use_debian_rust() {
    local host
    lock_cache
    trap 'rm -rf "$rust.new" "$rust.std"' EXIT
    host=$(uname -m)
    [ "$host" = x86_64 ] || fail "Debian's Rust is used on x86_64 only; run \`rustup target add $triple\`"
    own_apt rust "$(debian_architecture "$host")" "${suites[@]}"
    [ -e "$rust/version" ] || unpack_rust
    has_std "$rust/usr" "$triple" || unpack_std
    has_std "$rust/usr" "$triple" || fail "Debian's libstd-rust-dev for $architecture has no library for $triple"
    cat >"$rust/rustc.new" <<WRAPPER
#!/bin/sh
exec "$rust/lib64/ld-linux-x86-64.so.2" --library-path "$rust/usr/lib/x86_64-linux-gnu" "$rust/usr/bin/rustc" --sysroot "$rust/usr" "\$@"
WRAPPER
    chmod 755 "$rust/rustc.new"
    mv "$rust/rustc.new" "$rust/rustc"
    export RUSTC=$rust/rustc
    # Building takes long and concerns the cache no more.
    exec 9>&-
}

cd "$top"
if [ "${KATA_CROSS_RUST:-}" = debian ]; then
    use_debian_rust
elif ! add_std; then
    say "rustup cannot; taking Debian's compiler"
    use_debian_rust
fi

say "building the agent for $architecture (cargo, release)"
cargo build --release --package kata-agent --target "$triple" --config "target.$triple.linker='$linker'" \
    --config "build.rustflags=['-Ctarget-feature=+crt-static', '-Crelocation-model=static']"
agent=$cache/agent/$architecture/kata-agent
built=${CARGO_TARGET_DIR:-$top/target}/$triple/release/kata-agent
if ! cmp -s "$built" "$agent"; then
    install -D -m 755 "$built" "$agent.new"
    mv "$agent.new" "$agent"
fi
say "the agent for $architecture: $agent ($(stat -c %s "$agent") bytes)"
