#!/usr/bin/env bash
# Counting without callbacks, compared with wc(1): test_reap.sh REAP
set -u -o pipefail
reap=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

run() {
    timeout --kill-after=5 50 "$reap" "$@"
}

mkdir -p "$work/tree/one/two" "$work/tree/name with spaces"
for ((i = 0; i < 300; i++)); do
    seq "$i" >"$work/tree/one/$i"
done
: >"$work/tree/empty"
seq 700000 >"$work/tree/one/two/large"
printf 'no newline at the end' >"$work/tree/name with spaces/file"
head -c 65536 /dev/zero >"$work/tree/exactly one piece"
ln -s nowhere "$work/tree/dangling link"

wanted=$(find "$work/tree" -type f -exec cat {} + | wc -lc | awk '{ print $1, $2 }')
count=$(find "$work/tree" -type f | wc -l)
for options in "" "--depth 1" "--depth 7 --piece 4096" "--depth 512 --piece 100"; do
    # shellcheck disable=SC2086 # the words of $options are separate arguments
    run $options --quiet "$work/tree" >"$work/out"
    status=$?
    [ "$status" -eq 77 ] && exit 77
    [ "$status" -eq 0 ] || fail "reap $options ended with $status"
    got=$(awk '{ print $1, $2, $5 }' "$work/out")
    [ "$got" = "$wanted $count" ] || fail "reap $options counted '$got', wc '$wanted $count'"
done

# A file that is not there is told by name; the others are still read.
if run "$work/tree/one/1" "$work/missing" >"$work/out" 2>"$work/err"; then
    fail "success although a file is missing"
fi
grep -q "open $work/missing: " "$work/err" || fail "the missing file is not named"
grep -q "total of 1 files" "$work/out" || fail "the file that is there was not read"

# A FIFO without a writer must not hang it; it cannot be read at positions.
mkfifo "$work/fifo"
run "$work/fifo" >"$work/out" 2>"$work/err"
[ $? -eq 1 ] || fail "a FIFO did not end in an error"
grep -q "$work/fifo" "$work/err" || fail "the FIFO is not named"
echo "reap: all passed"
