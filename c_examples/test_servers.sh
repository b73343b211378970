# What the tests that need a server share; to be sourced.
#
#   start NAME COMMAND...   runs a server, waits until it prints its port; sets PORT
#   stop NAME               ends it with SIGTERM; fails unless it exits with 0
#   sockets NAME            prints how many sockets it has open
#   wait_sockets NAME N     waits until it has N sockets open again, for it may still be closing; fails if it never has
#   late_reader             sends 20 MB to PORT and begins to read only later; fails unless the same comes back
#   fail MESSAGE            ends the test, showing what the servers printed
#
# Nothing outlives the test, and nothing lasts longer than a minute. A server that exits with 77 (its backend is denied
# on this machine) makes the test exit with 77, too.

set -u -o pipefail

work=$(mktemp -d "${TMPDIR:-/tmp}/upcall.XXXXXX") || exit 1
declare -A watchdogs=() # the timeout(1) each server runs under, by the server's name

clean_up() {
    local name
    for name in ${watchdogs[@]+"${!watchdogs[@]}"}; do
        kill -TERM "${watchdogs[$name]}" 2>/dev/null # passed on, and followed by SIGKILL
    done
    rm -rf "$work"
}
trap clean_up EXIT

fail() {
    echo "FAILED: $*" >&2
    local log
    for log in "$work"/*.log; do
        [ -e "$log" ] && sed "s|^|  ${log##*/}: |" "$log" >&2
    done
    exit 1
}

start() {
    local name=$1 log=$work/$1.log tries status
    shift
    : >"$log" # a server of this name may have been here before
    # shellcheck disable=SC2016 # expanded by the inner shell
    timeout --kill-after=5 60 bash -c 'echo $$ >"$0"; exec "$@"' "$work/$name.pid" "$@" >"$log" 2>&1 &
    watchdogs[$name]=$!
    for ((tries = 0; tries < 200; tries++)); do
        PORT=$(sed -n 's/^listening on .* port \([0-9][0-9]*\).*/\1/p' "$log")
        [ -n "$PORT" ] && return
        if ! kill -0 "${watchdogs[$name]}" 2>/dev/null; then
            wait "${watchdogs[$name]}"
            status=$?
            [ "$status" -eq 77 ] && { cat "$log" >&2; exit 77; }
            fail "$name ended with $status before it was listening"
        fi
        sleep 0.05
    done
    fail "$name did not listen within ten seconds"
}

stop() {
    local name=$1 status
    kill -TERM "$(cat "$work/$name.pid")" || fail "$name is gone"
    wait "${watchdogs[$name]}"
    status=$?
    unset "watchdogs[$name]"
    [ "$status" -eq 0 ] || fail "$name ended with $status"
}

sockets() {
    find "/proc/$(cat "$work/$1.pid")/fd" -lname 'socket:*' | wc -l
}

wait_sockets() {
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        [ "$(sockets "$1")" -eq "$2" ] && return
        sleep 0.05
    done
    fail "$1 has $(sockets "$1") sockets open instead of $2"
}

late_reader() {
    local sender
    head -c 20000000 /dev/urandom >"$work/sent"
    exec 4<>"/dev/tcp/127.0.0.1/$PORT" || fail "cannot connect"
    timeout 30 cat "$work/sent" >&4 &
    sender=$!
    sleep 0.5 # by now all buffers on the way are full
    timeout 30 head -c 20000000 <&4 | cmp - "$work/sent" || fail "a late reader did not get back what was sent"
    wait "$sender" || fail "a late reader's sender ended with $?"
    exec 4>&-
}
