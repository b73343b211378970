#!/usr/bin/env bash
# Checksums compared with those of cksum(1): test_reader.sh READER
set -u -o pipefail
reader=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

run() {
    timeout --kill-after=5 60 "$reader" "$@" 2>err
}

: >empty
printf x >one
head -c 1048576 /dev/urandom >block
head -c 1048577 /dev/urandom >more
head -c 30000000 /dev/urandom >large
truncate -s 20000000 hole

for file in empty one block more large hole; do
    run "$file" >found
    status=$?
    [ "$status" -eq 77 ] && exit 77
    [ "$status" -eq 0 ] || fail "$file: ended with $status: $(cat err)"
    cmp found <(cksum "$file") || fail "$file: another checksum"
done

# Many at once end in any order.
run empty one block more large hole >found || fail "all at once: $(cat err)"
cmp <(sort found) <(cksum empty one block more large hole | sort) || fail "all at once: other checksums"

# What cannot be read is named, and the rest is read.
run missing directory/ large >found && fail "a missing file was read"
cmp found <(cksum large) || fail "the rest was not read"
grep -q missing err || fail "the missing file is not named"
run . >found && fail "a directory was read"
grep -q directory err || fail "the directory is not refused as one"

# It ends when it is told to, in the middle of a file that has no end.
echo quit | run -i /dev/zero >found && fail "a file without end was read"
[ $? -eq 124 ] && fail "it did not quit"
[ -s found ] && fail "there is a checksum of a file without end"
echo "reader: all passed"
