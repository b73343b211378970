#!/bin/sh
# valgrind.sh BUILD [TEST...]: every C test under memcheck, on both backends, or those named. BACKENDS="epoll" to choose.
# Each test is a process: its errors and definite leaks fail it.
set -u
build=$1
here=$(dirname "$0")
shift
[ $# -gt 0 ] || set -- $(cd "$build/tests" && ls -d c.*.shared | sed 's/^c\.//; s/\.shared$//')
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=
for name in "$@"; do
    for backend in ${BACKENDS:-io_uring epoll}; do
        begun=$(date +%s)
        UPCALL_BACKEND=$backend UPCALL_TEST_SLOWNESS=30 UPCALL_TEST_SECONDS=600 \
        UPCALL_TEST_SKIP="$(sed -n "s/^$name \([^ ]*\) /\1=/p" "$here/valgrind.txt")" \
            valgrind --quiet --fair-sched=yes --error-exitcode=99 --leak-check=full --show-leak-kinds=definite \
            --errors-for-leak-kinds=definite --suppressions="$here/valgrind.supp" --num-callers=30 \
            "$build/tests/c.$name.shared" >"$log" 2>&1
        status=$?
        echo "$name on $backend: $(tail -n 1 "$log"), $(($(date +%s) - begun)) s"
        grep '^skipped' "$log"
        if [ $status != 0 ] && [ $status != 77 ]; then
            failed="$failed $name.$backend"
            grep -v '^ok\|^skipped' "$log"
        fi
    done
done
[ -z "$failed" ] || echo "failed:$failed"
[ -z "$failed" ]
