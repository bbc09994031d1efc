#!/bin/sh
# Makes sure that the given commands are there: installs their Debian packages if they are not.
#
#   scripts/need.sh cargo gcc curl
#
# Says nothing when nothing is missing.
set -eu

# Some Debian programs are only on the administrator's path.
PATH="$PATH:/usr/sbin:/sbin"

# Which Debian package a command comes in, where the names differ.
package_of() {
    case $1 in
    ip) echo iproute2 ;;
    libclang) echo clang ;;
    qemu-*-static) echo qemu-user-static ;;
    readelf) echo binutils ;;
    update-binfmts) echo binfmt-support ;;
    *) echo "$1" ;;
    esac
}

# Whether it is there already.
has() {
    case $1 in
    # No command, but a library and the headers of its own, in which bindgen looks for types.
    libclang) has_file "${LIBCLANG_PATH:-}"/libclang*.so* /usr/lib*/libclang*.so* \
        /usr/lib*/*/libclang*.so* /usr/lib*/*/lib/libclang*.so* /usr/local/lib*/libclang*.so* &&
        has_file /usr/lib*/clang/*/include/stddef.h /usr/lib*/*/lib*/clang/*/include/stddef.h \
            /usr/local/lib*/clang/*/include/stddef.h ;;
    # No command, but a module that Debian packs apart from the rest.
    python3-venv) python3 -c 'import ensurepip, venv' >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# Whether one of these files is there: a pattern without a match stands for itself.
has_file() {
    for file in "$@"; do
        if [ -e "$file" ]; then
            return 0
        fi
    done
    return 1
}

packages=
for command in "$@"; do
    if has "$command"; then
        continue
    fi
    if [ "$command" = cargo ]; then
        # Debian's own version is too old for this program.
        echo "cargo is missing. Install Rust 1.88 or newer, for example with" >&2
        echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
        exit 1
    fi
    packages="$packages $(package_of "$command")"
done
if [ -z "$packages" ]; then
    exit 0
fi

as_root=
if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
fi
if ! command -v apt-get >/dev/null 2>&1 || ! command -v "${as_root:-true}" >/dev/null 2>&1; then
    echo "missing:$packages. Please install them and try again." >&2
    exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "installing:$packages"
# The list of packages is meant to be split into words.
# shellcheck disable=SC2086
if ! { $as_root apt-get update -qq &&
    # The run level keeps a service from being started: it is the command that is wanted.
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends $packages; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "could not install:$packages. Please install them and try again." >&2
    exit 1
fi
