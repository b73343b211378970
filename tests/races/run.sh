#!/bin/sh
# The long run of the race tests: run.sh <build folder> [races of cancel for each kind of wait]. Exit status: 0 or 1.
set -u
build=$1
count=${2:-10000000}
status=0
for backend in io_uring epoll; do
    for program in "$build"/tests/races.*; do
        case $program in
        *.cancel) set -- --count "$count" ;;
        *.deadline) set -- --count $((count / 10)) ;;
        *) set -- --seconds 60 ;;
        esac
        echo "== $backend: $(basename "$program") $*"
        UPCALL_BACKEND=$backend "$program" "$@"
        case $? in 0 | 77) ;; *) status=1 ;; esac
    done
done
exit $status
