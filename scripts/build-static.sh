#!/bin/sh
# Builds a program that needs no libraries of the machine it runs on, and checks that it is so.
#
#   scripts/build-static.sh [target triple, default: this machine's]
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
binary=${CARGO_TARGET_DIR:-target}/$target/release/nodepass

# Cargo.toml says on which targets there is QUIC.
crates=$("$cargo" tree --target "$target" --prefix none)
features=
if ! echo "$crates" | grep -q '^quiche '; then
    echo "QUIC (type=1) does not run on $target: it is left out"
    features='--no-default-features --features http2,tls,websocket'
fi

# The options are meant to be split into words.
# shellcheck disable=SC2086
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    "$cargo" build --release --target "$target" $features

# A static program asks for no loader (INTERP) and no libraries (NEEDED).
headers=$(readelf --wide --program-headers --dynamic "$binary")
if echo "$headers" | grep -E 'INTERP|NEEDED' >&2; then
    echo "$binary is not static: it asks for the above" >&2
    exit 1
fi
echo "static: $binary ($(wc -c <"$binary") bytes)"
