#!/usr/bin/env bash
# The site is made without a warning, and has what it should: site.sh DOXYFILE
#
# Exit status: 0, 1, or 77 where Doxygen is not installed.
set -u -o pipefail
doxyfile=$1
command -v doxygen >/dev/null || { echo "doxygen is not installed"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall-manual.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $*"
    exit 1
}

{ cat "$doxyfile"; echo "OUTPUT_DIRECTORY = $work"; } >"$work/Doxyfile"
doxygen "$work/Doxyfile" >"$work/said" 2>&1 || fail "doxygen says: $(cat "$work/said")"
[ ! -s "$work/said" ] || fail "doxygen says: $(cat "$work/said")"

cd "$work/html" || fail "there is no site"
pages=$(find . -name '*.html' | wc -l)
echo "$pages pages"
[ "$pages" -ge 50 ] || fail "so few pages"
for picture in loop operation backend; do
    { [ -s "$picture.svg" ] && grep -q "$picture.svg" ./*.html; } || fail "there is no picture of the $picture"
done
for page in index quick_start ownership cancellation deadlines ordering threads buffers backends embedding troubleshooting \
    from_libuv from_asio from_liburing cpp group__api__op__socket classupcall_1_1loop; do
    [ -s "$page.html" ] || fail "there is no $page.html"
done
# What Markdown leaves as it is when a link or a table is not understood.
grep -l 'body' ./*.html | xargs grep -nE '\]\([a-z_/]+\.md|@ref|@subpage|<td>\|' | grep -v 'class="line"' && fail "something was not understood"
exit 0
