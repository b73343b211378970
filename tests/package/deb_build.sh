#!/bin/sh
# Makes the Debian packages as CMakePresets.json has it, of the library that cargo has built already:
# deb_build.sh SOURCE BUILD CARGO_TARGET_DIR
set -eu
source=$1 build=$2 cargo_target=$3
for tool in dpkg-deb dpkg-shlibdeps file gzip; do
    command -v "$tool" >/dev/null || { echo "$tool is not installed"; exit 77; }
done
rm -rf "$build"
umask 027 # no package depends on it
cmake -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr -DUPCALL_BUILD_TESTS=OFF \
    -DUPCALL_BUILD_EXAMPLES=OFF -DUPCALL_BUILD_BENCH=OFF -DUPCALL_CARGO_TARGET_DIR="$cargo_target"
cmake --build "$build"
cd "$build"
cpack
