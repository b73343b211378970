#!/usr/bin/env bash
# Runs a test program beside a server of its own on 127.0.0.1, with certificates of its own, or alone:
# with_server.sh nginx|redis|postgres|dnsmasq|s_server|certificates|nothing PROGRAM [ARGUMENT...]
#
# The program gets UPCALL_TEST_PORT, and UPCALL_TEST_DIR, a folder that is removed afterwards. Exit status: the program's, 1, or
# 77 when the server is not installed. The server ends with the test, and lasts no longer than three minutes.
set -u -o pipefail
PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d "${TMPDIR:-/tmp}/upcall.XXXXXX") || exit 1
server=
ends_by=TERM
clean_up() {
    [ -n "$server" ] && kill -"$ends_by" "$server" 2>/dev/null && wait "$server"
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP

fail() {
    echo "FAILED: $*" >&2
    [ -e "$work/log" ] && sed 's|^|  server: |' "$work/log" >&2
    exit 1
}

# need PROGRAM PACKAGE
need() {
    command -v "$1" >/dev/null || { echo "skipped: $1 is not installed (Debian package $2)" && exit 77; }
}

# As an ordinary user where that is demanded.
as_user=()
become_user() {
    [ "$(id -u)" -eq 0 ] || return 0
    need setpriv util-linux
    as_user=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    chown nobody:nogroup "$work"
}

# Writes what the server needs, once.
prepare_nginx() {
    need nginx nginx-light
    mkdir "$work/www" "$work/tmp"
    for i in 0 1 2 3 4 5 6 7 8 9; do
        head -c $((i * i * 10000 + i)) /dev/urandom >"$work/www/$i"
    done
    head -c 60000 /dev/urandom >"$work/www/slow"
}
prepare_redis() { need redis-server redis-server; }
# An authority with a server's certificate, and another authority.
prepare_certificates() {
    need openssl openssl
    (
        cd "$work" && exec >"$work/log" 2>&1 &&
            for name in ca other; do
                openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$name" \
                    -keyout "$name.key" -out "$name.pem" || exit 1
            done &&
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=server.test -keyout server.key \
                -out server.csr &&
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem \
                -extfile <(echo 'subjectAltName=DNS:server.test') &&
            cat server.key >>server.pem
    ) || fail "openssl ended with $?"
}
prepare_s_server() { prepare_certificates; }
prepare_nothing() { :; }
prepare_dnsmasq() { need dnsmasq dnsmasq-base; }
prepare_postgres() {
    local bin
    for bin in /usr/lib/postgresql/*/bin; do
        PATH=$bin:$PATH
    done
    need initdb postgresql
    become_user
    ends_by=INT # which does not wait for clients
    "${as_user[@]}" initdb --pgdata "$work/db" --username upcall --auth trust --no-locale --encoding UTF8 --no-sync \
        >"$work/log" 2>&1 || fail "initdb ended with $?"
}

# Sets `command` to what runs the server on $port.
command=()
command_nginx() {
    local user=
    [ "$(id -u)" -eq 0 ] && user='user root;'
    cat >"$work/nginx.conf" <<CONF
daemon off; worker_processes 1; pid $work/pid; error_log $work/log; $user
events { worker_connections 1024; }
http {
    access_log off; sendfile on; keepalive_requests 10000; client_max_body_size 0;
    client_body_temp_path $work/tmp; proxy_temp_path $work/tmp; fastcgi_temp_path $work/tmp;
    uwsgi_temp_path $work/tmp; scgi_temp_path $work/tmp;
    server {
        listen 127.0.0.1:$port backlog=1024;
        root $work/www;
        location /slow { limit_rate 20k; }
        location /again { return 302 /9; }
        location /sink { return 204; }
    }
}
CONF
    command=(nginx -p "$work" -c "$work/nginx.conf" -e "$work/log")
}
command_redis() {
    command=(redis-server --port "$port" --bind 127.0.0.1 --save '' --appendonly no --dir "$work" --timeout 0)
}
command_dnsmasq() {
    command=(dnsmasq --keep-in-foreground --conf-file=/dev/null --port="$port" --listen-address=127.0.0.1 --bind-interfaces
        --no-resolv --no-hosts --no-daemon --pid-file= --log-facility=- --user="$(id -un)" --domain-needed
        --local=/test/ --address=/all.test/127.1.2.3 --host-record=one.test,127.0.0.11,fd00::11 --host-record=two.test,127.0.0.12
        --txt-record=text.test,"$(head -c 200 /dev/zero | tr '\0' x)")
}
command_s_server() { # turns lines round
    command=(openssl s_server -accept "127.0.0.1:$port" -cert "$work/server.pem" -rev -quiet)
}
command_postgres() {
    command=("${as_user[@]}" postgres -D "$work/db" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories=
        -c fsync=off)
}

start() {
    local port try
    for try in 1 2 3 4 5 6 7 8 9 10; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000)) # below those that the kernel gives away
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue
        "command_$1"
        timeout --kill-after=5 180 "${command[@]}" >>"$work/log" 2>&1 &
        server=$!
        for ((try_ = 0; try_ < 300; try_++)); do
            kill -0 "$server" 2>/dev/null || break # somebody else has the port
            if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
                sleep 0.1
                kill -0 "$server" 2>/dev/null || break
                export UPCALL_TEST_PORT=$port
                return
            fi
            sleep 0.1
        done
        kill -"$ends_by" "$server" 2>/dev/null
        wait "$server"
        server=
    done
    fail "$1 did not start"
}

kind=$1
shift
"prepare_$kind"
export UPCALL_TEST_DIR=$work
declare -F "command_$kind" >/dev/null && start "$kind"
"$@"
status=$?
[ -z "$server" ] || kill -0 "$server" 2>/dev/null || fail "$kind has ended by itself"
exit "$status"
