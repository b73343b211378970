#!/usr/bin/env bash
# The program on README's first screen compiles as printed, without a warning, and does what is said there on both
# backends: readme.sh BUILD_DIR
#
# CC chooses the compiler. Exit status: 0 it does, 1 it does not, 77 the example server it talks to was not built.
set -u -o pipefail

if [ $# -ne 1 ]; then
    echo "usage: readme.sh BUILD_DIR    (where CMake has built the library and the examples)"
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
build=$1
echo_server=$build/c_examples/echo_server
[ -x "$echo_server" ] || { echo "no $echo_server"; exit 77; }

work=$(mktemp -d "${TMPDIR:-/tmp}/upcall-readme.XXXXXX") || exit 1
server=
clean_up() {
    [ -z "$server" ] || kill "$server" 2>/dev/null
    rm -rf "$work"
}
trap clean_up EXIT
fail() {
    echo "FAILED: $*"
    exit 1
}

awk '/^```c$/ { inside = 1; next } inside && /^```$/ { exit } inside' "$root/README.md" >"$work/hello.c"
[ -s "$work/hello.c" ] || fail "README.md has no \`\`\`c block"
"${CC:-cc}" -Wall -Wextra -Werror -I"$root/include" "$work/hello.c" -L"$build/lib" -Wl,-rpath,"$build/lib" -lupcall \
    -o "$work/hello" || fail "it does not compile"

# start_server: on any backend; its port in $port
start_server() {
    : >"$work/server"
    UPCALL_BACKEND=auto "$echo_server" >"$work/server" 2>&1 &
    server=$!
    for _ in {1..200}; do
        port=$(sed -n 's/^listening on .* port \([0-9]*\).*/\1/p' "$work/server")
        [ -n "$port" ] && return
        sleep 0.05
    done
    fail "the server does not listen: $(cat "$work/server")"
}

# expect BACKEND OUTPUT: what the program prints; 1: that backend is denied here
expect() {
    UPCALL_BACKEND=$1 timeout --kill-after=5 30 "$work/hello" "$port" >"$work/out" 2>"$work/err"
    local status=$?
    if [ "$1" = io_uring ] && grep -q '^upcall_loop_new: io_uring' "$work/err"; then
        cat "$work/err"
        return 1
    fi
    [ "$status" -eq 0 ] || fail "on $1 it ended with $status: $(cat "$work/out" "$work/err")"
    printf '%s\n' "$2" | diff - "$work/out" || fail "on $1 it does not print what it should"
}

start_server
for backend in io_uring epoll; do
    expect "$backend" "connect on $backend: ok
send on $backend: ok
recv on $backend: ok
hello" || continue
    echo "$backend: answered"
done

kill "$server"
wait "$server" 2>/dev/null
server=
for backend in io_uring epoll; do
    expect "$backend" "connect on $backend: Connection refused
send on $backend: Operation canceled
recv on $backend: Operation canceled" || continue
    echo "$backend: refused"
done
