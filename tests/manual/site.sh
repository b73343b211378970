#!/usr/bin/env bash
# The site is made without a warning, and has what it should: site.sh DOXYFILE DOCS
#
# Exit status: 0, 1, or 77 where Doxygen is not installed.
set -u -o pipefail
doxyfile=$1 docs=$(cd "$2" && pwd) || exit 1
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
# What is left where a link, a table, bold text or a heading was not understood. Code may have all of it.
sed '/class="line"/d; /class="\(mem\|param\)/d; s/<code>[^<]*<\/code>//g' -s ./*.html |
    grep -nE '\]\([a-z_/]+\.md|@(ref|subpage|section)|&lt;t[dhr]|<td>\||<p[^>]*>.*(\*\*[<A-Za-z]|[a-z.]\*\*)|```' && fail "something was not understood"
# What is not in the index is found by nobody.
for page in "$docs"/*.md "$docs"/manual/*.md; do
    page=${page#"$docs"/}
    [ "$page" = README.md ] || grep -q "($page)" "$docs/README.md" || fail "docs/README.md does not name $page"
done
exit 0
