#!/usr/bin/env bash
# The echo server and the client that loads it: test_echo.sh ECHO_SERVER ECHO_CLIENT
. "$(dirname "$0")/test_servers.sh"
server=$1
client=$2

load() {
    timeout --kill-after=5 50 "$client" "$@" 127.0.0.1 "$PORT" || fail "echo_client $* ended with $?"
}

start server "$server"
idle=$(sockets server)
load --connections 16 --messages 200 --size 64
load --connections 200 --messages 5 --size 100
load --connections 4 --messages 4 --size 1048576
load --connections 1 --messages 1 --size 1

late_reader

# Clients that come and go without a word. After all these the server has closed every connection.
for _ in 1 2 3; do
    exec 3<>"/dev/tcp/127.0.0.1/$PORT" || fail "cannot connect"
    exec 3>&-
done
wait_sockets server "$idle"

# A client that sends and never reads is no longer read from, so its sender gets stuck; the others notice nothing.
exec 3<>"/dev/tcp/127.0.0.1/$PORT" || fail "cannot connect"
timeout 1 head -c 200000000 /dev/zero >&3
[ $? -eq 124 ] || fail "the server took 200 MB from a client that reads nothing"
load --connections 8 --messages 100 --size 1000

# With that client still connected the server stops at once, and cleanly.
stop server
exec 3>&-

# Far fewer buffers than connections, and smaller than a message: everybody has to wait, nobody is forgotten.
start small_pool "$server" --buffers 4 --buffer-size 64
load --connections 32 --messages 20 --size 1000
stop small_pool

# Nobody listens there any more: the client says so, and does not hang.
if timeout --kill-after=5 20 "$client" --connections 2 --messages 1 127.0.0.1 "$PORT" 2>"$work/refused"; then
    fail "echo_client succeeded without a server"
fi
grep -q 'connect' "$work/refused" || fail "echo_client did not tell that the connect failed"
echo "echo: all passed"
