#!/usr/bin/env bash
# A loop per thread: test_workers.sh WORKERS
. "$(dirname "$0")/test_servers.sh"
workers=$1

# Its own clients: it checks the greetings and the totals itself.
for threads in 1 3; do
    timeout --kill-after=5 50 "$workers" --threads "$threads" --clients 200
    status=$?
    [ "$status" -eq 77 ] && exit 77
    [ "$status" -eq 0 ] || fail "workers --threads $threads ended with $status"
done

# Clients from outside, then a signal: the last numbers arrive, and they are right.
start workers "$workers" --threads 3
for ((i = 0; i < 20; i++)); do
    exec 3<>"/dev/tcp/127.0.0.1/$PORT" || fail "cannot connect"
    greeting=$(timeout 10 cat <&3) || fail "no end of the stream came"
    exec 3>&-
    [[ $greeting == "hello from worker "[012] ]] || fail "the greeting was '$greeting'"
done
stop workers
grep -q 'together: 20 greeted, 0 failed' "$work/workers.log" || fail "the totals are wrong"
echo "workers: all passed"
