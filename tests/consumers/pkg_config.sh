#!/bin/sh
# Builds a program with what pkg-config says, and runs it: pkg_config.sh shared|static LIBDIR SOURCE PROGRAM VERSION
set -eu
how=$1 libdir=$2 source=$3 program=$4 version=$5
command -v pkg-config >/dev/null || { echo "pkg-config is not installed"; exit 77; }
export PKG_CONFIG_PATH="$libdir/pkgconfig"

pkg-config --exact-version="$version" upcall
static=
[ "$how" = shared ] || static=-static
eval "set -- $(pkg-config --cflags --libs ${static:+--static} upcall)" # it quotes for the shell: the path may have spaces
"$CC" $static -DVERSION="\"$version\"" "$source" "$@" -o "$program"
if [ "$how" = shared ]; then
    readelf -d "$program" | grep 'NEEDED.*libupcall\.so\.'
    LD_LIBRARY_PATH=$libdir "$program"
else
    "$program"
fi
