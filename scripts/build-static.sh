#!/bin/sh
# Builds a program that needs no libraries of the machine it runs on, and checks that it is so.
#
#   [PROFILE=full|router|minimal] scripts/build-static.sh [target triple, default: this machine's]
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
binary=${CARGO_TARGET_DIR:-target}/$target/small/nodepass
features=$(scripts/features.sh "${PROFILE:-full}")

# works FLAGS: whether a program can be linked with them, and whether it runs where it can.
works() {
    folder=$(mktemp -d)
    echo 'fn main() { println!("works"); }' >"$folder/main.rs"
    status=0
    # The flags are meant to be split into words.
    # shellcheck disable=SC2086
    rustc --target "$target" ${RUSTFLAGS:-} $1 -C panic=abort -o "$folder/main" "$folder/main.rs" \
        >/dev/null 2>&1 || status=1
    # For another processor there may be nothing to run it on.
    if [ "$status" -eq 0 ] && [ "${target%%-*}" = "$(uname -m)" ]; then
        [ "$("$folder/main" 2>/dev/null)" = works ] || status=1
    fi
    rm -rf "$folder"
    return "$status"
}

# Cargo.toml says on which targets there is QUIC.
case ,$features, in
*,quic,*)
    crates=$("$cargo" tree --target "$target" --prefix none)
    if ! echo "$crates" | grep -q '^quiche '; then
        echo "QUIC (type=1) does not run on $target: it is left out"
        features=$(echo "$features" | sed -e 's/,quic,/,/' -e 's/^quic,//' -e 's/,quic$//')
    fi
    ;;
esac

# Nothing unwinds, so nothing needs tables for it.
flags='-C target-feature=+crt-static -C force-unwind-tables=no'
# What not every linker or target can do: pack relocations, and keep one of equal functions.
for flag in -C\ link-arg=-Wl,-z,pack-relative-relocs -C\ link-arg=-Wl,--icf=all; do
    if works "$flags $flag"; then
        flags="$flags $flag"
    fi
done

# With the sources of the standard library (`rustup component add rust-src`) it is built for size as
# well, and without what prints backtraces, which there is nothing to make of: half a megabyte less.
# The option of cargo is not stable, so the compiler has to be told to take it.
library=
if [ -e "$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; then
    library='-Z build-std=std,panic_abort -Z build-std-features=optimize_for_size'
    RUSTC_BOOTSTRAP=1
    export RUSTC_BOOTSTRAP
fi

# The options are meant to be split into words.
# shellcheck disable=SC2086
RUSTFLAGS="${RUSTFLAGS:-} $flags" "$cargo" build --profile small --target "$target" $library \
    --no-default-features --features "$features"

# A static program asks for no loader (INTERP) and no libraries (NEEDED).
headers=$(readelf --wide --program-headers --dynamic "$binary")
if echo "$headers" | grep -E 'INTERP|NEEDED' >&2; then
    echo "$binary is not static: it asks for the above" >&2
    exit 1
fi
echo "static: $binary ($(wc -c <"$binary") bytes)"
