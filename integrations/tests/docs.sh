#!/usr/bin/env bash
# A program of docs/integrations.md, compiled as it is printed and run on both backends: docs.sh SECTION
# PKG_CONFIG_MODULE SOURCE_DIR LIB_DIR. Run by with_server.sh.
set -u -o pipefail
section=$1 module=$2 source=$3 lib=$4
port=${UPCALL_TEST_PORT-} work=$UPCALL_TEST_DIR
fail() {
    echo "FAILED: $*"
    exit 1
}

awk -v heading="## $section" '
    /^## / { here = $0 == heading }
    /^```/ { inside = here && $0 == "```c"; next }
    inside { print }
' "$source/docs/integrations.md" >"$work/program.c"
# shellcheck disable=SC2046 # the flags are separate arguments
"${CC:-cc}" -Wall -Wextra -Wshadow -Werror "$work/program.c" -I"$source/include" -I"$source/integrations" \
    $(pkg-config --cflags --libs "$module") -L"$lib" -Wl,-rpath,"$lib" -lupcall -o "$work/program" ||
    fail "the program of $section does not compile"

arguments=()
case $section in
libcurl)
    arguments=("http://127.0.0.1:$port/2" "http://127.0.0.1:$port/3")
    wanted="http://127.0.0.1:$port/2: No error, 40002 bytes
http://127.0.0.1:$port/3: No error, 90003 bytes"
    ;;
hiredis)
    arguments=("$port")
    wanted='GET: value
SET: OK'
    ;;
OpenSSL)
    arguments=("$port" server.test "$work/ca.pem")
    wanted=olleh
    ;;
GLib) wanted='Upcall in GLib: sleep' ;;
libuv) wanted='Upcall in libuv: sleep' ;;
libpq)
    arguments=("host=127.0.0.1 port=$port user=upcall dbname=postgres")
    wanted=42
    ;;
c-ares)
    arguments=("127.0.0.1:$port" one.test nothing.test)
    wanted='nothing.test: Domain name not found 
one.test: Successful completion 127.0.0.11'
    ;;
esac
for backend in auto epoll; do
    UPCALL_BACKEND=$backend no_proxy=127.0.0.1 timeout --kill-after=5 30 "$work/program" "${arguments[@]}" >"$work/out" 2>&1
    status=$?
    got=$(sort "$work/out")
    [ "$status" -eq 0 ] && [ "$got" = "$wanted" ] || fail "with UPCALL_BACKEND=$backend it ended with $status and said: $got"
done
