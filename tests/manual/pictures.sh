#!/usr/bin/env bash
# The pictures of the manual are those that Graphviz draws from their text: pictures.sh SOURCE_DIR. UPCALL_BLESS=1 draws them.
#
# Compared is what they say and how it hangs together, not where it stands: that differs with versions and fonts.
# Exit status: 0, 1, or 77 where Graphviz is not installed.
set -u -o pipefail
cd "$1/docs/manual" || exit 1
command -v dot >/dev/null || { echo "dot is not installed"; exit 77; }
words() { grep -oE '>[^<>]+<' "$1" | sort; }
failed=0
for text in *.dot; do
    picture=${text%.dot}.svg
    drawn=$(mktemp "${TMPDIR:-/tmp}/upcall-picture.XXXXXX") || exit 1
    dot -Tsvg "$text" -o "$drawn" || failed=1
    [ -z "${UPCALL_BLESS-}" ] || cat "$drawn" >"$picture"
    diff <(words "$picture") <(words "$drawn") || { echo "FAILED: $picture is not what $text says: UPCALL_BLESS=1 $0 $1"; failed=1; }
    rm -f "$drawn"
    echo "$picture: $(words "$picture" | wc -l) words"
done
exit $failed
