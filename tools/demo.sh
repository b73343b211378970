#!/usr/bin/env bash
# Shows what Upcall does, on both of its backends: demo.sh BUILD_DIR
#
# Runs three of the example programs (connect, echo with the client that loads it, cp) on io_uring and on epoll, and
# tells in plain words what was done, how it went, how long it took. Exits with 0 when all went well. A machine that
# denies io_uring is told so, with the reason, and the rest is shown on epoll.
set -u -o pipefail

if [ $# -ne 1 ] || [ "$1" = --help ]; then
    echo "usage: demo.sh BUILD_DIR    (where CMake has built the examples)"
    [ "${1-}" = --help ] && exit 0
    exit 2
fi
build=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall-demo.XXXXXX") || exit 1
server=
clean_up() {
    [ -n "$server" ] && kill -TERM "$server" 2>/dev/null
    rm -rf "$work"
}
trap clean_up EXIT
failures=0
lines=()

find_example() {
    local place
    for place in "$build/c_examples/$1" "$build/bin/$1" "$build/$1"; do
        if [ -f "$place" ] && [ -x "$place" ]; then
            echo "$place"
            return
        fi
    done
    echo "demo.sh: no example '$1' under $build: build it first (cmake --build $build)" >&2
    return 1
}

now_ms() {
    local now=${EPOCHREALTIME/[.,]/}
    echo $((now / 1000))
}

# result BACKEND WHAT STATUS STARTED_MS: a line of the table at the end
result() {
    local outcome=ok took=$(($(now_ms) - $4))
    if [ "$3" -ne 0 ]; then
        outcome=FAILED
        failures=$((failures + 1))
    fi
    lines+=("$(printf '  %-9s  %-46s %-7s %6d ms' "$1" "$2" "$outcome" "$took")")
}

heading() {
    printf '\n%s\n' "$1"
}

show() {
    sed 's/^/    /'
}

demo_connect() {
    local started
    started=$(now_ms)
    heading "1. Connecting without blocking: by hand, and with one operation"
    echo "   Four cases on 127.0.0.1. Deadline 300 ms; the cancelled attempt is cancelled after 100 ms."
    timeout --kill-after=5 60 "$connect" | show
    result "$1" "connect: 4 cases, each in 2 ways" $? "$started"
}

demo_echo() {
    local started status tries port=
    started=$(now_ms)
    heading "2. A TCP echo server on one thread, and a client that loads it"
    echo "   64 connections send 1000 messages of 64 bytes each; every byte that comes back is compared."
    timeout --kill-after=5 60 "$echo_server" >"$work/server" 2>&1 &
    server=$!
    for ((tries = 0; tries < 200; tries++)); do
        port=$(sed -n 's/^listening on .* port \([0-9]*\).*/\1/p' "$work/server")
        [ -n "$port" ] && break
        sleep 0.05
    done
    timeout --kill-after=5 60 "$echo_client" --connections 64 --messages 1000 --size 64 127.0.0.1 "$port" | show
    status=$?
    kill -TERM "$server" 2>/dev/null
    wait "$server" || status=1
    server=
    echo "   The server's own count, after SIGTERM:"
    grep -v '^listening' "$work/server" | show
    result "$1" "echo: 64 connections x 1000 messages" "$status" "$started"
}

demo_cp() {
    local started status
    started=$(now_ms)
    heading "3. Copying a file of 64 MB, 16 reads and writes in flight"
    "$cp" --verbose "$work/source" "$work/target" | show
    status=$?
    if [ "$status" -eq 0 ] && cmp "$work/source" "$work/target"; then
        echo "    cmp: the copy equals the source"
    else
        status=1
    fi
    rm -f "$work/target"
    result "$1" "cp: 64 MB, compared with cmp" "$status" "$started"
}

demo_backend() {
    local backend=$1 probe
    export UPCALL_BACKEND=$backend
    printf '\n==== %s ====\n' "$backend"
    if ! probe=$("$connect" --backend 2>&1); then
        echo "$backend is not available on this machine: ${probe#connect: no loop: }"
        if [ "$backend" = io_uring ]; then
            echo "Programs that use Upcall run here all the same: they get the epoll backend, which is shown next."
            lines+=("$(printf '  %-9s  not available: %s' "$backend" "${probe#connect: no loop: }")")
        else
            failures=$((failures + 1))
            lines+=("$(printf '  %-9s  FAILED: %s' "$backend" "$probe")")
        fi
        return
    fi
    echo "$probe"
    demo_connect "$backend"
    demo_echo "$backend"
    demo_cp "$backend"
}

connect=$(find_example connect) && echo_server=$(find_example echo_server) && echo_client=$(find_example echo_client) &&
    cp=$(find_example cp) || exit 1

echo "Upcall: asynchronous I/O for C and C++. The same programs, unchanged, on both of its backends:"
echo "io_uring, the kernel's queue of operations; and epoll, for kernels and containers that deny io_uring."
head -c 67108864 /dev/urandom >"$work/source" || exit 1
demo_backend io_uring
demo_backend epoll

printf '\n==== in short ====\n'
printf '%s\n' "${lines[@]}"
if [ "$failures" -gt 0 ]; then
    echo "$failures part(s) failed."
    exit 1
fi
echo "All went well."
