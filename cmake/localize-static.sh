#!/bin/sh
# Makes a static library in which only the public functions are global:
#
#   localize-static.sh SHARED RAW OUT strip|debug
#
# RAW is cargo's static library. It brings Rust's runtime along with global names, so that two Rust libraries cannot be
# linked into one program ("multiple definition of rust_eh_personality"). SHARED, built from the same sources, tells
# which functions are public. The tools: NM, LD (GNU ld), OBJCOPY, AR.
set -eu
shared=$1 raw=$2 out=$3 debug=$4

[ "$out" -nt "$raw" ] && [ "$out" -nt "$0" ] && exit 0
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT

"$NM" -D --defined-only "$shared" | awk '{ print $3 }' >"$work/public"
[ -s "$work/public" ] || { echo "localize-static.sh: $shared exports nothing" >&2; exit 1; }

# One object with what the public functions need, and nothing else; groups are dissolved, or the linker of the program
# would merge our local copies with the ones of another Rust library.
sed 's/^/--undefined=/' "$work/public" >"$work/roots"
"$LD" -r --gc-sections --force-group-allocation "@$work/roots" "$raw" -o "$work/upcall.o"
set -- "--keep-global-symbols=$work/public"
[ "$debug" = debug ] || set -- "$@" --strip-debug
"$OBJCOPY" "$@" "$work/upcall.o"
(cd "$work" && "$AR" rcs out.a upcall.o)
mv "$work/out.a" "$out"
