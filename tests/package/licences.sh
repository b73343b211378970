#!/bin/sh
# The crates compiled into the library are those that cmake/debian/copyright names, and each may be used under the licence
# it says: licences.sh COPYRIGHT CARGO TREE_ARGUMENT...
set -eu
copyright=$1 cargo=$2
shift 2
found=$(mktemp)
trap 'rm -f "$found"' EXIT
"$cargo" tree "$@" --edges normal --prefix none --format '{p}|{l}' | sed '/^upcall /d; s/ [^|]*//' | LC_ALL=C sort -u >"$found"
cat "$found"
if grep -v 'Apache-2\.0' "$found"; then
    echo "FAILED: not under the Apache License 2.0"
    exit 1
fi
names=$(cut -d '|' -f 1 "$found" | paste -s -d ,  | sed 's/,/, /g')
grep -q "^  $names\$" "$copyright" || { echo "FAILED: $copyright does not say: $names"; exit 1; }
