#!/bin/bash
# Installs by cargo-c as a distributor would, and uses that: cargo_c.sh SOURCE WORK VERSION SOVERSION SYMBOLS
set -eu
source=$1 work=$2 version=$3 soversion=$4 symbols=$5
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
cargo cinstall --version >/dev/null 2>&1 || { echo "cargo-c is not installed"; exit 77; }
root=$work/root
rm -rf "$root"
mkdir -p "$work"
cd "$source"
cargo cinstall --locked --release --prefix /usr --libdir /usr/lib --destdir "$root" --target-dir "$work/target"

cd "$root"
find . ! -type d -printf '%P %l\n' | sort >"$work/files"
cat <<EOS | diff -u --label wanted --label found - "$work/files"
usr/include/upcall.h 
usr/include/upcall.hpp 
usr/lib/libupcall.a 
usr/lib/libupcall.so libupcall.so.$version
usr/lib/libupcall.so.$soversion libupcall.so.$version
usr/lib/libupcall.so.$version 
usr/lib/pkgconfig/upcall.pc 
EOS
cmp "$source/include/upcall.h" usr/include/upcall.h
readelf --dynamic "usr/lib/libupcall.so.$version" | grep "SONAME.*\[libupcall.so.$soversion\]"
sh "$source/tests/package/symbols.sh" "$symbols" nm -D "usr/lib/libupcall.so.$version"

export PKG_CONFIG_PATH=$root/usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root
pkg-config --exact-version="$version" upcall
build() { cc "-DVERSION=\"$version\"" "$source/tests/consumers/app.c" "$@" -o "$work/app"; }
build $(pkg-config --cflags --libs upcall)
LD_LIBRARY_PATH=$root/usr/lib "$work/app"
# Not -static: cargo-c lists gcc_s, of which there is no static library.
build $(pkg-config --cflags upcall) usr/lib/libupcall.a $(pkg-config --libs --static upcall | sed 's/-lupcall//')
readelf --dynamic "$work/app" | grep 'NEEDED.*libupcall' && { echo "FAILED: it needs the shared library"; exit 1; }
"$work/app"
