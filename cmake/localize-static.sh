#!/bin/sh
# Makes a static library in which only the public functions are global:
#
#   localize-static.sh SHARED RAW OUT strip|debug
#
# RAW is cargo's static library. It brings Rust's runtime along with global names, so that two Rust libraries cannot be
# linked into one program ("multiple definition of rust_eh_personality"). SHARED, built from the same sources, tells
# which functions are public. The tools: NM, READELF, LD (GNU ld), OBJCOPY, AR.
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

# What only dropped code refers to: objcopy would turn these leftovers into symbols that the program has to define.
"$READELF" -sW "$work/upcall.o" | awk '$5 == "LOCAL" && $7 == "UND" && $8 != "" { print $8 }' >"$work/leftovers"

# Bitcode of another LLVM's version would end nm, ar and ld, where these have an LLVM plugin.
set -- --remove-section=.llvmbc --remove-section=.llvmcmd
[ "$debug" = debug ] || set -- "$@" --strip-debug --remove-section=.comment
[ ! -s "$work/leftovers" ] || set -- "$@" "--strip-symbols=$work/leftovers" # an empty list is an error to objcopy
"$OBJCOPY" "--keep-global-symbols=$work/public" "$@" "$work/upcall.o"
(cd "$work" && "$AR" rcs out.a upcall.o)
mv "$work/out.a" "$out"
