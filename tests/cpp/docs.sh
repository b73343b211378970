#!/usr/bin/env bash
# The code in docs/cpp.md is compiled as it is printed, without a warning, and its first program does what it says:
# docs.sh COMPILER SOURCE_DIR LIB_DIR
#
# Exit status: 0, 1, or 77 when there is no such compiler.
set -u -o pipefail
compiler=$1 source=$2 lib=$3
command -v "$compiler" >/dev/null || { echo "$compiler is not installed"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall-docs.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $*"
    exit 1
}

# The first block is a program. The others share its includes, and see what is above them.
awk -v dir="$work" '
    /^```cpp$/ { inside = 1; count++; next }
    /^```$/ { inside = 0; next }
    inside { print > (dir "/" (count == 1 ? "first" : "rest") ".cpp"); if (count > 1 && !seen[count]++) blocks++ }
    END { print blocks + (count > 0) > (dir "/count") }
' "$source/docs/cpp.md"
echo "$(cat "$work/count") blocks"
[ "$(cat "$work/count")" -ge 10 ] || fail "docs/cpp.md has lost its code"
{
    sed -n '/^#include/p; /^using/p' "$work/first.cpp"
    echo '#include <poll.h>'
    cat "$work/rest.cpp"
} >"$work/all.cpp"
flags=(-std=c++20 -pthread -Wall -Wextra -Wshadow -Werror "-I$source/include")
"$compiler" "${flags[@]}" -c "$work/all.cpp" -o "$work/all.o" || fail "the blocks do not compile"
"$compiler" "${flags[@]}" "$work/first.cpp" -L"$lib" -Wl,-rpath,"$lib" -lupcall -o "$work/first" ||
    fail "the first program does not compile"

# Nobody listens at port 1.
for backend in io_uring epoll; do
    UPCALL_BACKEND=$backend timeout --kill-after=5 30 "$work/first" 1 >"$work/out" 2>&1 && fail "it connected to nobody"
    grep -q '^connect: Connection refused$' "$work/out" || grep -q "denied\|EPERM\|ENOSYS" "$work/out" ||
        fail "on $backend it said: $(cat "$work/out")"
done
