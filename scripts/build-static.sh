#!/bin/sh
# Builds a program that needs no libraries of the machine it runs on, and checks that it is so.
#
#   [PROFILE=full|router|minimal] scripts/build-static.sh [target triple, default: this machine's]
#
# For another machine than this one, CARGO_TARGET_<TRIPLE>_LINKER names a linker, which then has to
# fit with CC_<triple> and CXX_<triple>. Without it, a triple with musl is built by Zig, which is
# fetched, and one with gnu by a cross compiler of the name that Debian gives it.
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
host=$(rustc -vV | sed -n 's/^host: //p')
target=${1:-$host}
folder=${CARGO_TARGET_DIR:-target}
binary=$folder/$target/small/nodepass
features=$(scripts/features.sh "${PROFILE:-full}")

# As it is in the names of variables.
name=$(echo "$target" | tr - _)
linker=CARGO_TARGET_$(echo "$name" | tr '[:lower:]' '[:upper:]')_LINKER
# As it is in the names of compilers.
prefix=$(echo "$target" | sed -e 's/-unknown-/-/' -e 's/^arm[^-]*/arm/' -e 's/^riscv64[^-]*/riscv64/')
library=$(rustc --print sysroot)/lib/rustlib
library_sources=$library/src/rust/library

fail() {
    echo "build-static: $1" >&2
    exit 1
}

# Whether a variable is set.
given() {
    [ -n "$(printenv "$1")" ]
}

# add NAME VALUE: to what a variable has already.
add() {
    export "$1=$(printenv "$1" || true) $2"
}

# with_quic: whether it is among the features.
with_quic() {
    case ,$features, in
    *,quic,*) ;;
    *) return 1 ;;
    esac
}

# link_flags OPTION...: the linker's own options as the compiler of Rust takes them.
link_flags() {
    for option in "$@"; do
        case $(printenv "$linker") in
        rust-lld) printf ' -C link-arg=%s' "$option" ;;
        *) printf ' -C link-arg=-Wl,%s' "$option" ;;
        esac
    done
}

# has_musl: whether Rust brings it for the target, and a linker.
has_musl() {
    [ -e "$library/$target/lib/self-contained/rcrt1.o" ] && [ -x "$library/$host/bin/rust-lld" ]
}

# works FLAGS: whether a program can be linked with them, and whether it runs where it can.
works() {
    try=$(mktemp -d)
    echo 'fn main() { println!("works"); }' >"$try/main.rs"
    status=0
    linked_by=$(printenv "$linker" || true)
    # The flags are meant to be split into words.
    # shellcheck disable=SC2086
    rustc --target "$target" ${RUSTFLAGS:-} $1 ${linked_by:+-C linker="$linked_by"} -C panic=abort \
        -o "$try/main" "$try/main.rs" >/dev/null 2>&1 || status=1
    # For another processor there may be nothing to run it on.
    if [ "$status" -eq 0 ] && [ "${target%%-*}" = "$(uname -m)" ]; then
        [ "$("$try/main" 2>/dev/null)" = works ] || status=1
    fi
    rm -rf "$try"
    return "$status"
}

# Cargo.toml says on which targets there is QUIC.
if with_quic; then
    crates=$("$cargo" tree --target "$target" --prefix none)
    if ! echo "$crates" | grep -q '^quiche '; then
        echo "QUIC (type=1) does not run on $target: it is left out"
        features=$(echo "$features" | sed -e 's/,quic,/,/' -e 's/^quic,//' -e 's/,quic$//')
    fi
fi

# The standard library of the target, if there is a rustup that has one; else it is built.
if [ ! -e "$library/$target" ] && rustup target list 2>/dev/null | grep -qx "$target"; then
    rustup target add "$target" || true
fi
if [ ! -e "$library/$target" ] && [ ! -e "$library_sources" ]; then
    fail "Rust has no standard library for $target: add its sources by 'rustup component add rust-src'"
fi

# Nothing unwinds, so nothing needs tables for it, nor what handles exceptions.
flags='-C target-feature=+crt-static -C force-unwind-tables=no'
add "CFLAGS_$name" '-fno-asynchronous-unwind-tables -fno-unwind-tables'
add "CXXFLAGS_$name" '-fno-asynchronous-unwind-tables -fno-unwind-tables -fno-exceptions -fno-rtti'

# BoringSSL has the time of musl 1.2 on processors of 32 bits; so has the crate libc, when told.
case $target in
*-musl*)
    if with_quic && rustc --print cfg --target "$target" | grep -qx 'target_pointer_width="32"'; then
        flags="$flags --cfg=libc_unstable_musl_v1_2"
    fi
    ;;
esac

build=build
if [ "$target" != "$host" ] && ! given "$linker"; then
    case $target in
    *-musl*)
        zig=$(scripts/zig.sh "$folder/zig")
        PATH=$zig:$PATH
        build=zigbuild
        ;;
    *)
        command -v "$prefix-gcc" >/dev/null ||
            fail "no $prefix-gcc: install it, on Debian gcc-$prefix, or set $linker"
        export "$linker=$prefix-gcc"
        ;;
    esac
fi

if [ "$build" = zigbuild ] && ! has_musl; then
    # That of Zig, and its linker.
    flags="$flags -C link-self-contained=no"
elif [ "$build" = zigbuild ]; then
    export "$linker=rust-lld"
    flags="$flags -C linker-flavor=ld.lld"
    if with_quic; then
        # BoringSSL's share of the C++ library: two files of it.
        cpp=$folder/zig/$target
        sources=$("$zig/python" -c 'import ziglang; print(ziglang.__path__[0])')/lib/libcxx/src
        mkdir -p "$cpp"
        for file in algorithm verbose_abort; do
            # The options are meant to be split into words.
            # shellcheck disable=SC2046
            "$zig/cargo-zigbuild" zig c++ -- -target "$prefix" -Os -fPIC -std=c++23 \
                -ffunction-sections $(printenv "CXXFLAGS_$name") -D_LIBCPP_BUILDING_LIBRARY \
                -I "$sources" -c -o "$cpp/$file.o" "$sources/$file.cpp"
        done
        rm -f "$cpp/libc++.a"
        "$zig/cargo-zigbuild" zig ar rcs "$cpp/libc++.a" "$cpp/algorithm.o" "$cpp/verbose_abort.o"
        export "BORING_BSSL_RUST_CPPLIB_$name=static:-bundle=c++"
        # It makes no object by `new`, so that nothing comes to be deleted, or purely virtual.
        flags="$flags -L native=$(cd "$cpp" && pwd) $(link_flags --defsym=_ZdlPvm=free \
            --defsym=_ZdlPvj=free --defsym=__cxa_pure_virtual=abort)"
    fi
fi

# What not every linker or target can do: pack relocations, keep one of equal functions and of
# equal ends of texts. Last, no library that walks the stack: without tables there is no way.
for more in -zpack-relative-relocs --icf=all -O2 \
    '--defsym=_Unwind_Backtrace=getpid --defsym=_Unwind_GetIP=getpid'; do
    # The options are meant to be split into words.
    # shellcheck disable=SC2046,SC2086
    more=$(link_flags $more)
    if works "$flags $more"; then
        flags="$flags $more"
    fi
done

# Panics tell the file they are in: without the folders of this machine, of which nobody has any use.
"$cargo" fetch --quiet --locked
for sources in "$library_sources" "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags="$flags --remap-path-prefix=$sources/="
done

# With the sources of the standard library (`rustup component add rust-src`) it is built for size as
# well, and without what prints backtraces, which there is nothing to make of: half a megabyte less.
# The option of cargo is not stable, so the compiler has to be told to take it.
standard=
if [ -e "$library_sources" ]; then
    standard='-Z build-std=std,panic_abort -Z build-std-features=optimize_for_size'
    export RUSTC_BOOTSTRAP=1
fi

# The options are meant to be split into words.
# shellcheck disable=SC2086
RUSTFLAGS="${RUSTFLAGS:-} $flags" "$cargo" $build --profile small --target "$target" $standard \
    --no-default-features --features "$features"

# A static program asks for no loader (INTERP) and no libraries (NEEDED).
headers=$(readelf --wide --program-headers --dynamic "$binary")
if echo "$headers" | grep -E 'INTERP|NEEDED' >&2; then
    fail "$binary is not static: it asks for the above"
fi
echo "static: $binary ($(wc -c <"$binary") bytes)"
