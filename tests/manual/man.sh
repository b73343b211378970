#!/usr/bin/env bash
# The manual pages: no complaint of mandoc or groff, the example of upcall(7) compiled, each function found by its name where they
# are installed: man.sh SOURCE_DIR INSTALLED_MAN_DIR
#
# Exit status: 0, 1, or 77 where neither mandoc nor man is installed.
set -u -o pipefail
source=$1 installed=$2
failed=0
complain() {
    echo "FAILED: $*"
    failed=1
}
command -v mandoc >/dev/null || command -v man >/dev/null || { echo "mandoc and man are not installed"; exit 77; }

for page in "$source"/docs/man/*.[37]; do
    if command -v mandoc >/dev/null; then
        mandoc -T lint -W warning "$page" || complain "mandoc on $(basename "$page")"
    fi
    if command -v man >/dev/null && command -v groff >/dev/null; then
        said=$(LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null)
        [ -z "$said" ] || complain "man on $(basename "$page"): $said"
    fi
done

# Between .EX and .EE stands a program.
program=$(sed -n '/^\.EX/,/^\.EE/{/^\.E[XE]/d;s/\\e/\\/g;s/\\-/-/g;s/\\&//g;p}' "$source/docs/man/upcall.7")
grep -q 'int main' <<<"$program" || complain "upcall(7) has no program"
"${CC:-cc}" -Wall -Wextra -Werror -I"$source/include" -x c -fsyntax-only - <<<"$program" || complain "the program of upcall(7)"

# Installed: a page for every exported function.
count=0
while read -r name; do
    page=$installed/man3/$name.3
    [ -s "$page" ] || { complain "there is no $page"; continue; }
    target=$(sed -n 's/^\.so //p' "$page")
    grep -q "SS $name()" "$installed/${target:-man3/$name.3}" || complain "$page does not lead to $name()"
    count=$((count + 1))
done <"$source/tests/symbols.txt"
[ -s "$installed/man7/upcall.7" ] || complain "upcall(7) is not installed"
echo "$count functions have a page"
exit $failed
