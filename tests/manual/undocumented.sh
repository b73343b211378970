#!/usr/bin/env bash
# A symbol without documentation fails the manual: undocumented.sh DOXYFILE SOURCE_DIR
#
# Exit status: 0, 1, or 77 where Doxygen is not installed.
set -u -o pipefail
doxyfile=$1 source=$2
command -v doxygen >/dev/null || { echo "doxygen is not installed"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall-manual.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

# says HEADER: what Doxygen says of this header alone
says() {
    { cat "$doxyfile"; printf 'OUTPUT_DIRECTORY = %s\nINPUT = "%s/docs/manual/families.txt" "%s"\nHAVE_DOT = NO\n' "$work" "$source" "$1"
      printf 'USE_MDFILE_AS_MAINPAGE =\nGENERATE_HTML = NO\nGENERATE_XML = YES\n'; } >"$work/Doxyfile"
    doxygen "$work/Doxyfile" 2>&1
}

# expect HEADER TEXT AFTER LINE: with LINE behind the line that has AFTER, Doxygen fails and names TEXT
expect() {
    mkdir -p "$work/include"
    awk -v after="$3" -v new="$4" '{ print } index($0, after) == 1 { print new; count++ } END { exit count != 1 }' \
        "$source/include/$1" >"$work/include/$1" || { echo "FAILED: where is '$3' in $1?"; exit 1; }
    local said
    if said=$(says "$work/include/$1"); then
        echo "FAILED: $1 may have $2 without documentation"
        exit 1
    fi
    grep -q "$2" <<<"$said" || { echo "FAILED: of $2 in $1 Doxygen says: $said"; exit 1; }
    echo "$1: $(grep -m1 "$2" <<<"$said")"
}

said=$(says "$source/include/upcall.h") || { echo "FAILED: of upcall.h as it is Doxygen says: $said"; exit 1; }
expect upcall.h upcall_unheard_of 'const char *upcall_version(void);' 'int32_t upcall_unheard_of(void);'
expect upcall.h UPCALL_UNHEARD_OF 'const char *upcall_version(void);' '#define UPCALL_UNHEARD_OF 1'
expect upcall.hpp unheard_of '    void request_stop()' '    int unheard_of();'
