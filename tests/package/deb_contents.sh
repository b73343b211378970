#!/bin/bash
# The Debian packages say what they should and have the files they should: deb_contents.sh PACKAGES VERSION SOVERSION TRIPLET SYMBOLS
set -eu
packages=$1 version=$2 soversion=$3 triplet=$4 symbols=$5
ls "$packages"/*.deb >/dev/null 2>&1 || { echo "there are no packages"; exit 77; }
revision=$version-0upcall1
architecture=$(dpkg --print-architecture)
runtime=$packages/libupcall${soversion}_${revision}_$architecture.deb
dev=$packages/libupcall-dev_${revision}_$architecture.deb
debug=$packages/libupcall$soversion-dbgsym_${revision}_$architecture.ddeb
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "FAILED: $*"
    failed=1
}
same() { # NAME, and the wanted on standard input, the found in a file
    diff -u --label "wanted: $1" --label "found: $1" - "$work/found" || failed=1
}

dpkg-deb --field "$runtime" Package Source Version Architecture Multi-Arch Section Priority >"$work/found"
same "fields of the library" <<EOS
Package: libupcall$soversion
Source: upcall
Version: $revision
Architecture: $architecture
Multi-Arch: same
Section: libs
Priority: optional
EOS
dpkg-deb --field "$dev" Package Version Multi-Arch Section Depends >"$work/found"
same "fields of the development files" <<EOS
Package: libupcall-dev
Version: $revision
Multi-Arch: same
Section: libdevel
Depends: libupcall$soversion (= $revision), libc6-dev | libc-dev
EOS
dpkg-deb --field "$runtime" Depends >"$work/found"
grep -Eq '(^|, )libc6 \(>= [0-9.]+\)' "$work/found" || fail "the library does not depend on libc6: $(cat "$work/found")"
grep -q upcall "$work/found" && fail "the library depends on itself"

# Mode, owner, path, and where a link leads.
list() {
    dpkg-deb --contents "$1" | awk '{ print $1, $2, $6 ($7 == "->" ? " -> " $8 : "") }' | LC_ALL=C sort -k 3
}
files() {
    list "$1" | grep -v '^d' >"$work/found"
    if list "$1" | grep '^d' | grep -v '^drwxr-xr-x root/root '; then fail "folders of $1"; fi
}
lib=./usr/lib/$triplet
files "$runtime"
same "files of the library" <<EOS
lrwxrwxrwx root/root $lib/libupcall.so.$soversion -> libupcall.so.$version
-rw-r--r-- root/root $lib/libupcall.so.$version
-rw-r--r-- root/root ./usr/share/doc/libupcall$soversion/changelog.Debian.gz
-rw-r--r-- root/root ./usr/share/doc/libupcall$soversion/changelog.gz
-rw-r--r-- root/root ./usr/share/doc/libupcall$soversion/copyright
EOS
files "$dev"
# A manual page for each function, compressed, and one for the whole.
while read -r name; do
    grep -q "^-rw-r--r-- root/root ./usr/share/man/man3/$name.3.gz$" "$work/found" || fail "no manual page of $name"
done <"$symbols"
grep -q '^-rw-r--r-- root/root ./usr/share/man/man7/upcall.7.gz$' "$work/found" || fail "no upcall(7)"
sed -i '\,/usr/share/man/man[37]/upcall[a-z0-9_]*\.[37]\.gz$,d' "$work/found"
same "development files" <<EOS
-rw-r--r-- root/root ./usr/include/upcall.h
-rw-r--r-- root/root ./usr/include/upcall.hpp
-rw-r--r-- root/root ./usr/include/upcall_ares.h
-rw-r--r-- root/root ./usr/include/upcall_curl.h
-rw-r--r-- root/root ./usr/include/upcall_glib.h
-rw-r--r-- root/root ./usr/include/upcall_hiredis.h
-rw-r--r-- root/root ./usr/include/upcall_openssl.h
-rw-r--r-- root/root ./usr/include/upcall_pq.h
-rw-r--r-- root/root ./usr/include/upcall_uv.h
-rw-r--r-- root/root ./usr/include/upcall_watch.h
-rw-r--r-- root/root $lib/cmake/upcall/upcallConfig.cmake
-rw-r--r-- root/root $lib/cmake/upcall/upcallConfigVersion.cmake
-rw-r--r-- root/root $lib/cmake/upcall/upcallTargets.cmake
-rw-r--r-- root/root $lib/libupcall.a
lrwxrwxrwx root/root $lib/libupcall.so -> libupcall.so.$soversion
-rw-r--r-- root/root $lib/pkgconfig/upcall.pc
-rw-r--r-- root/root ./usr/share/doc/libupcall-dev/changelog.Debian.gz
-rw-r--r-- root/root ./usr/share/doc/libupcall-dev/changelog.gz
-rw-r--r-- root/root ./usr/share/doc/libupcall-dev/copyright
EOS

dpkg-deb --raw-extract "$runtime" "$work/runtime"
(cd "$work/runtime/DEBIAN" && find . -type f -printf '%m %P\n' | sort -k 2) >"$work/found"
same "control files of the library" <<EOS
644 control
644 md5sums
644 shlibs
644 symbols
644 triggers
EOS
echo "libupcall $soversion libupcall$soversion (>= ${version%.*}.0)" | diff -u - "$work/runtime/DEBIAN/shlibs" || failed=1
# Debian's own tool finds the same functions in the library.
(cd "$work" && mkdir debian && printf 'Source: upcall\n\nPackage: libupcall%s\nArchitecture: any\n' "$soversion" >debian/control &&
    dpkg-gensymbols "-plibupcall$soversion" -Pruntime "-v${version%.*}.0" "-Iruntime/DEBIAN/symbols" -c4 -O >/dev/null) ||
    fail "symbols"
[ "$(grep -c '@Base' "$work/runtime/DEBIAN/symbols")" = "$(wc -l <"$symbols")" ] || fail "symbols are not those of $symbols"

library=$work/runtime/${lib#./}/libupcall.so.$version
readelf --dynamic "$library" | grep -E 'R(UN)?PATH' && fail "it has a path to search"
readelf --sections --wide "$library" | grep -E '\.(debug_|symtab)' && fail "it is not stripped"
dpkg-deb --contents "$debug" | grep -q '/usr/lib/debug/\.build-id/../.*\.debug$' || fail "no debug symbols beside it"
for package in "$runtime" "$dev" "$debug"; do
    rm -rf "$work/package"
    dpkg-deb --raw-extract "$package" "$work/package"
    (cd "$work/package" && md5sum --quiet --check DEBIAN/md5sums) || fail "md5sums of $package"
    grep -v '^[0-9a-f]*  usr/' "$work/package/DEBIAN/md5sums" && fail "md5sums of $package name other places"
done
exit $failed
