#!/bin/bash
# What a user of the Debian packages does; run by throwaway.sh: deb_install.sh PACKAGES TESTS VERSION SOVERSION
set -eu
[ -n "${THROWAWAY-}" ] || { echo "it removes and installs things: run it by throwaway.sh"; exit 2; }
packages=$1 tests=$2 version=$3 soversion=$4
ls "$packages"/*.deb >/dev/null 2>&1 || { echo "there are no packages"; exit 77; }
library=libupcall$soversion
runtime=$(echo "$packages/${library}_"*.deb)
dev=$(echo "$packages/libupcall-dev_"*.deb)
fail() {
    echo "FAILED: $*"
    exit 1
}
known() { ldconfig -p | grep "libupcall.so.$soversion "; }

find /usr/local -name '*upcall*' -delete # of this machine
dpkg --purge libupcall-dev "$library" 2>/dev/null || :
ldconfig

echo "==== the development files want their library"
if dpkg --install "$dev" 2>&1; then fail "they were installed without it"; fi
dpkg --install "$runtime" "$dev" "$packages/$library-dbgsym_"*.ddeb
dpkg --verify "$library" libupcall-dev "$library-dbgsym" | grep . && fail "files differ from the packages'"
known || fail "the loader does not know the library"

echo "==== as on any machine: no path, no option"
work=$(mktemp -d)
cd "$work"
cp "$tests/consumers/app.c" "$tests/consumers/app.cpp" .
flags=$(pkg-config --cflags --libs upcall | xargs)
[ "$flags" = -lupcall ] || fail "pkg-config says: $flags"
build() { # PROGRAM COMMAND...: and whether it needs the shared library is in $needs
    local program=$1
    shift
    echo "$*"
    "$@" -o "$program"
    "./$program"
    readelf --dynamic "$program" | grep -q "NEEDED.*libupcall.so.$soversion"
}
for compiler in gcc clang; do
    command -v $compiler >/dev/null || continue
    build app $compiler "-DVERSION=\"$version\"" app.c -lupcall || fail "it is not linked with the shared library"
    build app $compiler -static "-DVERSION=\"$version\"" app.c $(pkg-config --static --libs upcall) && fail "it is not static"
    case $compiler in gcc) compiler=g++ ;; *) compiler=clang++ ;; esac
    command -v $compiler >/dev/null || continue
    build app $compiler -std=c++20 app.cpp $flags || fail "it is not linked with the shared library"
done
ctest --build-and-test "$tests/consumers/find_package" "$work/find_package" --build-generator "Unix Makefiles" \
    --build-options "-DWANTED_VERSION=$version" --test-command ctest --output-on-failure --no-tests=error

echo "==== a package of such a program depends on the library"
mkdir debian
printf 'Source: app\n\nPackage: app\nArchitecture: any\n' >debian/control
gcc "-DVERSION=\"$version\"" app.c -lupcall -o app
depends=$(dpkg-shlibdeps -O app)
echo "$depends"
case $depends in *"$library (>= ${version%.*}.0)"*) ;; *) fail "it does not" ;; esac

echo "==== removal"
dpkg --purge "$library-dbgsym"
if dpkg --remove "$library" 2>&1; then fail "the library was removed from under its development files"; fi
dpkg --purge libupcall-dev "$library"
known && fail "the loader still knows the library"
left=$(find /usr/lib /usr/include /usr/share/doc -name '*upcall*')
[ -z "$left" ] || fail "left behind: $left"
