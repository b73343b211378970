#!/usr/bin/env bash
# Children that succeed, fail, obey and do not: test_supervisor.sh SUPERVISOR
set -u -o pipefail
supervisor=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall.XXXXXX") || exit 1
pid=
trap '[ -n "$pid" ] && kill -KILL "$pid" 2>/dev/null; rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    cat "$work/out" >&2
    exit 1
}

run() {
    timeout --kill-after=5 50 "$supervisor" "$@" >"$work/out" 2>&1
}

# lines PATTERN COUNT: so many lines match.
lines() {
    [ "$(grep -c -- "$1" "$work/out")" -eq "$2" ] || fail "not $2 lines '$1'"
}

# start ARGUMENT...: in the background.
start() {
    : >"$work/out" # what the last one wrote must not be taken for this one's
    "$supervisor" "$@" >"$work/out" 2>&1 &
    pid=$!
}

# appears PATTERN COUNT: waits until so many lines match.
appears() {
    for ((i = 0; i < 1500; i++)); do
        [ "$(grep -c -- "$1" "$work/out")" -ge "$2" ] && return
        sleep 0.02
    done
    fail "'$1' did not appear $2 times"
}

# ends STATUS: the one in the background, in time.
ends() {
    for ((i = 0; i < 1500; i++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.02
    done
    kill -0 "$pid" 2>/dev/null && fail "it does not end"
    wait "$pid"
    [ $? -eq "$1" ] || fail "it did not end with $1"
    pid=
}

run --copies 5 true
status=$?
[ "$status" -eq 77 ] && exit 77
[ "$status" -eq 0 ] || fail "five that succeed ended with $status"
lines "exited with 0" 5

run --copies 2 --restarts 3 --pause 1 sh -c 'exit 3' && fail "success although all failed"
lines "started as" 8
lines "exited with 3" 8
lines "given up" 2

run --restarts 0 sh -c 'kill -KILL $$' && fail "success although it was killed"
lines "killed by signal 9" 1

run "$work/missing" && fail "success although there is no such program"
grep -q "missing: " "$work/out" || fail "the missing program is not named"

# Succeeds the second time.
run --pause 1 sh -c "[ -e '$work/been' ] || { : >'$work/been'; exit 1; }" || fail "it did not succeed the second time"
lines "started as" 2

# Told to end: obedient ones end by SIGTERM, and one that pauses before its restart is not started again.
start --copies 3 sleep 1000
appears "started as" 3
kill -TERM "$pid"
ends 0
lines "killed by signal 15" 3

start --pause 3600000 false
appears "exited with 1" 1
kill -INT "$pid"
ends 0
lines "started as" 1

# A stubborn one gets SIGKILL, after the grace or at the second signal.
stubborn="trap '' TERM; echo ready; while :; do sleep 0.05; done"
start --grace 50 sh -c "$stubborn"
appears "ready" 1
kill -TERM "$pid"
ends 0
lines "killed by signal 9" 1

start --grace 3600000 sh -c "$stubborn"
appears "ready" 1
kill -TERM "$pid"
appears "ending" 1
kill -INT "$pid"
ends 0
lines "killed by signal 9" 1

# SIGHUP is passed on.
start --restarts 0 sh -c "trap 'echo hung up; exit 0' HUP; echo ready; while :; do sleep 0.05; done"
appears "ready" 1
kill -HUP "$pid"
ends 0
lines "hung up" 1
echo "supervisor: all passed"
