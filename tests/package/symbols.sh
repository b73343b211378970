#!/bin/sh
# A library's global symbols are those of the list, no more and no less: symbols.sh LIST NM -D|-g LIBRARY
set -eu
list=$1 nm=$2 which=$3 library=$4
found=$(mktemp)
trap 'rm -f "$found"' EXIT
"$nm" "$which" --defined-only "$library" | awk 'NF == 3 { print $3 }' | LC_ALL=C sort >"$found"
[ -s "$found" ] || { echo "$library shows no symbols"; exit 1; }
diff -u "$list" "$found"
