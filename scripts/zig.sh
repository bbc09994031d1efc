#!/bin/sh
# Makes compilers for C and C++ that know every processor, and the C library musl for each: Zig,
# from PyPI, with the command of cargo that uses it. Prints the folder of their commands.
#
#   scripts/zig.sh path/to/an/environment
set -eu

folder=$1
versions='cargo-zigbuild==0.24.0 ziglang==0.17.1'

if [ "$(cat "$folder/made" 2>/dev/null)" != "$versions" ]; then
    "$(dirname "$0")/need.sh" python3 python3-venv >&2
    rm -rf "$folder"
    python3 -m venv "$folder"
    # The list of packages is meant to be split into words.
    # shellcheck disable=SC2086
    "$folder/bin/pip" install --quiet --disable-pip-version-check $versions >&2
    echo "$versions" >"$folder/made"
fi
(cd "$folder/bin" && pwd)
