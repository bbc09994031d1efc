#!/bin/sh
# Builds each profile as one static file and prints how large it is, as a table for the README.
#
#   scripts/size.sh [target triple, default: this machine's]
#
# The programs stay in the folder `size` of the build. CARGO_PROFILE_RELEASE_OPT_LEVEL=z tries
# what the same costs when it is built for size.
set -eu
cd "$(dirname "$0")/.."

target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
build=${CARGO_TARGET_DIR:-target}
mkdir -p "$build/size"

for profile in full router minimal; do
    PROFILE=$profile scripts/build-static.sh "$target" >&2
    cp "$build/$target/small/nodepass" "$build/size/nodepass-$profile"
done

echo "| profile | features | bytes on $target |"
echo '|---|---|--:|'
for profile in full router minimal; do
    # As it was built: some targets leave features out.
    features=$("$build/size/nodepass-$profile" --version 2>/dev/null |
        sed -n 's/.*(features: \(.*\); target .*/\1/p')
    [ -n "$features" ] || features=$(scripts/features.sh "$profile" | sed 's/,/, /g')
    echo "| $profile | $features | $(wc -c <"$build/size/nodepass-$profile") |"
done
