#!/usr/bin/env bash
# What this machine does, compared with what the header and the environment say: test_info.sh INFO HEADER
set -u -o pipefail
info=$1
header=$2
backend=${UPCALL_BACKEND:?}
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    cat "$work/out" "$work/err" >&2
    exit 1
}

run() {
    timeout --kill-after=5 50 env "$@" "$info" >"$work/out" 2>"$work/err"
}

# how OPERATION COLUMN: what the table says (1: io_uring, 2: epoll)
how() {
    awk -v name="$1" -v column="$2" '$2 == name && $1 ~ /^[0-9]+$/ { print $(2 + column) }' "$work/out"
}

run X=x
status=$?
[ "$status" -eq 77 ] && exit 77
[ "$status" -eq 0 ] || fail "info ended with $status"
grep -q "^kernel  *Linux $(uname -r) on $(uname -m)$" "$work/out" || fail "the kernel is not named"
grep -q "^backend  *$backend$" "$work/out" || fail "the backend is not $backend"
grep -q "^reason  *[^ ]" "$work/out" || fail "there is no reason"

# Every operation of the header, with its number, and no other.
sed -n 's/^#define UPCALL_OP_\([A-Z0-9_]*\) \([0-9]*\)$/\2 \L\1/p' "$header" | sort -n >"$work/wanted"
[ "$(wc -l <"$work/wanted")" -ge 50 ] || fail "the header names few operations"
awk '$1 ~ /^[0-9]+$/ && NF == 4 { print $1, $2 }' "$work/out" | sort -n >"$work/found"
diff "$work/wanted" "$work/found" >&2 || fail "the operations are not those of the header"
count=$(wc -l <"$work/wanted")
grep -q "^$count operations, " "$work/out" || fail "they are not $count"
if awk '$1 ~ /^[0-9]+$/ && NF == 4 && $4 != "emulated"' "$work/out" | grep .; then
    fail "epoll has a way of its own"
fi

# What is masked is emulated, on the ring only; the rest is as before.
[ "$(how statx 2)" = emulated ] || fail "statx on epoll"
if [ "$(how nop 1)" = native ]; then
    run UPCALL_MASK=nop,multishot || fail "info with a mask ended with $?"
    [ "$(how nop 1)" = emulated ] || fail "a masked nop is not emulated"
    [ "$(how read 1)" = native ] || fail "the mask took read, too"
    grep -q "io_uring .*; UPCALL_MASK=nop,multishot$" "$work/out" || fail "the mask is not shown"
fi

# Where there is no ring, the reason takes its place.
if [ "$backend" = epoll ]; then
    run UPCALL_MASK=ext_arg || fail "info without a ring ended with $?"
    grep -q "^  io_uring  *not used here: .*io_uring" "$work/out" || fail "why there is no ring is not said"
    [ "$(how nop 1)" = - ] || fail "there is a ring"
fi

# A mistake is told.
run UPCALL_MASK=stats && fail "success although the mask means nothing"
grep -q '"stats"' "$work/err" || fail "the mistake is not named"
echo "info: all passed"
