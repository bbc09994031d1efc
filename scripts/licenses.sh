#!/bin/sh
# Prints the licences of all that goes into the program, for whoever hands it on: each text once,
# under the names of what it is for.
#
#   [PROFILE=full|router|minimal] scripts/licenses.sh [target triple, default: this machine's]
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
features=$(scripts/features.sh "${PROFILE:-full}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# note NAME TEXT: a file for each text, and one for the names of those whose it is.
note() {
    number=$(sha256sum <"$2" | cut -c 1-16)
    cp "$2" "$folder/$number.text"
    echo "$1" >>"$folder/$number.names"
}

"$cargo" fetch --quiet --locked
# Name, version and licence of each crate; of those that only build, the one whose files are served.
crates=$("$cargo" tree --target "$target" --no-default-features --features "$features" \
    --edges normal,build --prefix none --format '{p}|{l}' |
    sed -e 's/ ([^|]*)|/|/' -e 's/ (\*)$//' | sort -u |
    grep -v '^nodepass ')
normal=$("$cargo" tree --target "$target" --no-default-features --features "$features" \
    --edges normal,no-proc-macro --prefix none --format '{p}' | sed 's/ (.*)//' | sort -u)

echo 'nodepass is under the licence of its file LICENSE. The program has parts of the following, of the'
echo 'standard library of Rust (MIT OR Apache-2.0) and, as a static file, of the C library it was built'
echo 'with: musl (MIT), or glibc (LGPL-2.1-or-later).'
echo
echo "$crates" | while IFS='|' read -r crate license; do
    case $crate in
    utoipa-swagger-ui-vendored\ *) ;;
    *) echo "$normal" | grep -qxF "$crate" || continue ;;
    esac
    name=${crate%% *} version=${crate##* v}
    sources=$(echo "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-$version")
    echo "$crate: $license"
    for text in "$sources"/LICEN[CS]E* "$sources"/COPYING* "$sources"/COPYRIGHT* "$sources"/NOTICE* \
        "$sources"/deps/*/LICENSE; do
        if [ -f "$text" ]; then
            note "$crate" "$text"
        fi
    done
    case $name in
    utoipa-swagger-ui-vendored)
        for file in LICENSE NOTICE; do
            unzip -p "$sources"/res/*.zip "*/$file" >"$folder/unpacked"
            note 'Swagger UI' "$folder/unpacked"
        done
        ;;
    esac
done

for names in "$folder"/*.names; do
    printf '\n%s\n%s\n\n' '------------------------------------------------------------' \
        "$(sort -u "$names")"
    cat "${names%.names}.text"
done
