#!/bin/sh
# sanitized.sh COMPILER SOURCE_DIR LIB_DIR PROGRAM: builds the server with address and undefined-behaviour sanitizers. Where
# the compiler has none PROGRAM becomes one that says so, with the status of a skipped test.
set -eu
compiler=$1 source=$2 lib=$3 program=$4
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
rm -f "$program"
# shellcheck disable=SC2086 # several words
if ! echo 'int main(void) { return 0; }' | "$compiler" $flags -x c - -o "$program"; then
    printf '#!/bin/sh\necho "%s has no sanitizers here" >&2\nexit 77\n' "$compiler" >"$program"
    chmod +x "$program"
    exit 0
fi
# shellcheck disable=SC2086
"$compiler" -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Werror -O1 -g $flags -I"$source/include" \
    "$source/c_examples/http_server.c" -L"$lib" -lupcall -lpthread -Wl,-rpath,"$lib" -o "$program"
