#!/bin/sh
# No library tells where it was built: paths.sh SOURCE_DIR CARGO_HOME SYSROOT LIBRARY...
set -eu
source=$1 cargo_home=$2 sysroot=$3
shift 3
for library in "$@"; do
    grep -q --text 'src/reader\.rs' "$library" || { echo "FAILED: $library names no source at all"; exit 1; }
    for place in "$source" "$cargo_home" "$sysroot"; do
        if grep --text --only-matching --fixed-strings "$place/" "$library" | head -n 1 | grep .; then
            echo "FAILED: $library names $place"
            exit 1
        fi
    done
done
