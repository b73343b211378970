#!/usr/bin/env bash
# The proxy in front of other servers: test_tcp_proxy.sh TCP_PROXY ECHO_SERVER ECHO_CLIENT WORKERS
. "$(dirname "$0")/test_servers.sh"
proxy=$1
echo_server=$2
echo_client=$3
workers=$4

# Every connection of echo_client ends its own stream first and still expects its last message back, and then the end of
# the stream: both halves of a half-close.
start echo_server "$echo_server"
start proxy "$proxy" 127.0.0.1 "$PORT"
idle=$(sockets proxy)
for load in "--connections 16 --messages 100 --size 64" "--connections 4 --messages 3 --size 1048576" \
    "--connections 100 --messages 3 --size 1000"; do
    # shellcheck disable=SC2086 # the words of $load are separate arguments
    timeout --kill-after=5 50 "$echo_client" $load 127.0.0.1 "$PORT" || fail "echo_client $load ended with $?"
done

late_reader

# A client that comes and goes without a word. After all these the proxy has closed every pair, and the target saw it.
exec 3<>"/dev/tcp/127.0.0.1/$PORT" || fail "cannot connect"
exec 3>&-
wait_sockets proxy "$idle"
wait_sockets echo_server 1

# Back-pressure: nobody reads the echo, so the proxy stops reading, and the sender gets stuck.
exec 3<>"/dev/tcp/127.0.0.1/$PORT" || fail "cannot connect"
timeout 1 head -c 200000000 /dev/zero >&3
[ $? -eq 124 ] || fail "the proxy took 200 MB for a client that reads nothing"
timeout --kill-after=5 50 "$echo_client" --messages 50 127.0.0.1 "$PORT" || fail "a stuck pair holds up the others"

# It stops cleanly while that pair is open.
stop proxy
exec 3>&-
stop echo_server

# The target ends first: what it sent arrives, then the end of the stream.
start workers "$workers" --threads 2
start proxy "$proxy" 127.0.0.1 "$PORT"
for _ in 1 2 3 4 5; do
    exec 3<>"/dev/tcp/127.0.0.1/$PORT" || fail "cannot connect"
    greeting=$(timeout 10 cat <&3) || fail "no end of the stream came through"
    exec 3>&-
    [[ $greeting == "hello from worker "* ]] || fail "the greeting came through as '$greeting'"
done
stop workers

# The target is gone: the client's connection ends, the proxy goes on.
exec 3<>"/dev/tcp/127.0.0.1/$PORT" || fail "cannot connect"
timeout 10 cat <&3 >"$work/nothing" 2>&1
[ $? -eq 124 ] && fail "the client was kept although the target is gone"
exec 3>&-
stop proxy
grep -q '^tcp_proxy: connect: ' "$work/proxy.log" || fail "the proxy did not tell that the connect failed"
echo "tcp_proxy: all passed"
