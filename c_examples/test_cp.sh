#!/usr/bin/env bash
# Copies compared with their sources: test_cp.sh CP
set -u -o pipefail
cp=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/upcall.XXXXXX") || exit 1
writer=
copier=
clean_up() {
    local pid
    for pid in $writer $copier; do
        kill -TERM "$pid" 2>/dev/null
    done
    rm -rf "$work"
}
trap clean_up EXIT
cd "$work" || exit 1

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

run() {
    timeout --kill-after=5 60 "$cp" "$@"
}

# Copies, and compares contents, length and mode.
check() {
    local status
    run "$@" source target
    status=$?
    [ "$status" -eq 77 ] && exit 77
    [ "$status" -eq 0 ] || fail "$what: ended with $status"
    cmp source target || fail "$what: the copy differs"
    [ "$(stat -c '%s %a' source)" = "$(stat -c '%s %a' target)" ] || fail "$what: length or mode differ"
}

kilobytes() {
    du -k "$1" | cut -f1
}

what="empty file"
: >source
check
what="one byte, over a longer target"
printf x >source
head -c 100000 /dev/urandom >target
check
what="exactly one piece"
head -c 262144 /dev/urandom >source
check
what="one byte more than a piece, and a mode"
head -c 262145 /dev/urandom >source
chmod 0751 source
check
what="large file"
head -c 30000000 /dev/urandom >source
check
check --depth 1
check --depth 200 --piece 5000

# Data, holes, and a hole at the end. The copy must not take more room than the source; that the source has holes at all
# is up to the file system.
what="sparse file"
rm -f source target
truncate -s 300000000 source
for offset in 0 1000 70000 100000000 250000001; do
    head -c 5000 /dev/urandom | dd of=source bs=1 seek="$offset" conv=notrunc status=none || fail "dd"
done
check
[ "$(kilobytes target)" -le "$(($(kilobytes source) + 64))" ] ||
    fail "$what: $(kilobytes source) KiB became $(kilobytes target) KiB"
what="nothing but a hole, over a target with data"
rm -f source
truncate -s 50000000 source
check
[ "$(kilobytes target)" -le "$(($(kilobytes source) + 64))" ] || fail "$what: the hole was filled"

# A file that is appended to meanwhile: the copy is a true beginning, and no shorter than the source was at first.
what="growing file"
rm -f target
head -c 20000000 /dev/urandom >source
(for ((i = 0; i < 100; i++)); do
    head -c 200000 /dev/urandom >>source
    sleep 0.01
done) &
writer=$!
run --depth 2 --piece 4096 source target || fail "$what: ended with $?"
wait "$writer"
writer=
[ "$(stat -c %s target)" -ge 20000000 ] || fail "$what: shorter than the source was at first"
cmp -n "$(stat -c %s target)" source target || fail "$what: not a beginning of the source"

# A file that is cut while it is copied. When the cut comes after the last look at the source the copy is the old file;
# there is no third outcome.
what="shrinking file"
cut_in_time=no
for ((try = 0; try < 10; try++)); do
    rm -f target
    head -c 40000000 /dev/urandom >source
    cat source >whole
    timeout --kill-after=5 60 "$cp" --depth 1 --piece 4096 source target &
    copier=$!
    for ((tick = 0; tick < 500; tick++)); do
        [ -s target ] && break
        sleep 0.002
    done
    truncate -s 1234567 source
    wait "$copier" || fail "$what: ended with an error"
    copier=
    if cmp -s source target; then
        cut_in_time=yes
        break
    fi
    cmp whole target || fail "$what: neither the old file nor the new one"
done
[ "$cut_in_time" = yes ] || echo "note: the copy was always faster than the cut"

# Errors name the file, and do no harm.
head -c 1000 /dev/urandom >source
cat source >whole
run source source 2>err && fail "a file was copied onto itself"
cmp -s source whole || fail "a copy onto itself destroyed the file"
ln -f source link
run source link 2>err && fail "a file was copied onto its other name"
cmp -s source whole || fail "a copy onto its other name destroyed the file"
run missing target 2>err && fail "a missing source was copied"
grep -q missing err || fail "the missing source is not named"
mkdir -p directory
run source directory 2>err && fail "a directory was overwritten"
grep -q directory err || fail "the directory is not named"
run source nowhere/target 2>err && fail "a target was made in a directory that does not exist"
grep -q nowhere/target err || fail "the target is not named"
mkfifo fifo
run fifo target 2>err && fail "a FIFO was copied"
grep -q fifo err || fail "the FIFO is not named"

# A limit on file sizes: an error that names the target, not a signal.
head -c 1000000 /dev/urandom >source
rm -f target
(
    ulimit -f 100
    run source target 2>err
)
[ $? -eq 1 ] || fail "file size limit: not an ordinary error"
grep -q 'write target' err || fail "file size limit: the target is not named"
echo "cp: all passed"
