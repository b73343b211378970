#!/bin/sh
# Lets the library call the shim:
#
#   link.sh LIBRARY SHIM UNTOUCHED OUT
#
# LIBRARY is the localized static library with its debug information; every function torture_x of the object SHIM takes the
# place of the library's x. A call that neither the shim nor the list UNTOUCHED knows is an error: nothing escapes unseen. So
# is a system call instruction of the library's own. The tools: NM, OBJCOPY, OBJDUMP.
set -eu
library=$1 shim=$2 untouched=$3 out=$4
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT

"$NM" "$shim" | awk '$2 == "T" && sub(/^torture_/, "", $3) { print $3, "torture_" $3 }' >"$work/redefine"
{ awk '{ print $1 }' "$work/redefine"; sed 's/#.*//' "$untouched" | tr -s ' ' '\n'; } | sort -u >"$work/known"
"$NM" -u "$library" | awk 'NF == 2 && $2 !~ /^_Unwind_/ { print $2 }' | sort -u >"$work/called"
if comm -13 "$work/known" "$work/called" | grep .; then
    echo "link.sh: the library calls these, and neither the shim nor $untouched has them" >&2
    exit 1
fi
if "$OBJDUMP" -d "$library" | grep -wE 'syscall|svc'; then
    echo "link.sh: the library has system call instructions of its own" >&2
    exit 1
fi
"$OBJCOPY" "--redefine-syms=$work/redefine" "$library" "$work/out.a"
mv "$work/out.a" "$out"
