#!/bin/sh
# run.sh BUILD [ENVIRONMENT...]: every C test in every environment, or in those named. MACHINE=1: see the Makefile.
set -u
build=$1
shift
[ $# -gt 0 ] || set -- $("$build/tests/denied" --list)
failed=
for environment in "$@"; do
    programs=$build/tests/denied.reason
    case $environment,${MACHINE:-} in
    sysctl-*,) ;; # while it lasts no other program can make a ring
    *) programs="$programs $(echo "$build"/tests/c.*.static)" ;;
    esac
    # shellcheck disable=SC2086 # names without blanks
    "$build/tests/denied" --jobs "${JOBS:-$(($(nproc) * 2))}" ${MACHINE:+--machine} "$environment" $programs
    case $? in
    0 | 77) ;;
    *) failed="$failed $environment" ;;
    esac
done
[ -z "$failed" ] || echo "failed:$failed"
[ -z "$failed" ]
