#!/bin/sh
# Says which cargo features a profile of the program has, comma-separated.
#
#   scripts/features.sh full|router|minimal
set -eu
cd "$(dirname "$0")/.."

case ${1:-} in
# Everything: the default of Cargo.toml. An empty answer would be an error.
full) sed -n 's/^default = \[\(.*\)\]$/\1/p' Cargo.toml | tr -d '" ' | grep . ;;
# For routers: without what is large. QUIC is most of it, and takes a C++ compiler to build.
router) echo http2,master,tls,websocket ;;
# The least that is safe over the internet: a tunnel over TCP and TLS, and no API.
minimal) echo tls ;;
*)
    echo "usage: scripts/features.sh full|router|minimal" >&2
    exit 2
    ;;
esac
