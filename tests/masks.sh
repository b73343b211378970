#!/usr/bin/env bash
# Runs every C test with one word of UPCALL_MASK at a time: masks.sh BUILD [WORD...]
#
# The words are those of masks.txt: a feature is masked, an operation once hidden and once refused. Prints a table as it goes;
# a failure's output is kept in BUILD/masks. JOBS is how many programs run at a time. Exit status: 0 when all passed.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
build=${1:?usage: masks.sh BUILD [WORD...]}
shift
jobs=${JOBS:-$(nproc)}
out=$build/masks
mkdir -p "$out" || exit 1

# A feature cannot be refused, and a word that is none is told by the library.
is_operation() {
    UPCALL_BACKEND=epoll UPCALL_MASK="!$1" "$build/tests/c.loop.shared" a_loop_can_be_made >"$out/word.log" 2>&1
}

words=("$@")
if [ ${#words[@]} -eq 0 ]; then
    mapfile -t found < <(sed -n 's/^[a-z0-9_]\{1,\} \{1,\}//p' tests/masks.txt | tr ',' '\n' | grep -v '\*' | sort -u)
    for word in "${found[@]}"; do
        words+=("$word")
        if is_operation "$word"; then
            words+=("!$word")
        fi
    done
fi

failed=0
printf '%-22s %8s %8s %8s %8s\n' mask programs failed skipped seconds
for word in "${words[@]}"; do
    log=$out/${word/!/refused.}.log
    from=$SECONDS
    UPCALL_MASK=$word ctest --test-dir "$build" -L '^shared$' -L '^io_uring$' --parallel "$jobs" \
        --output-on-failure --no-tests=error >"$log" 2>&1
    status=$?
    total=$(grep -c '^ *[0-9]*/[0-9]* Test ' "$log")
    skipped=$(grep -c '\*\*\*Skipped' "$log")
    bad=$(grep -c '\*\*\*\(Failed\|Timeout\|Exception\)' "$log")
    printf '%-22s %8d %8d %8d %8d\n' "$word" "$total" "$bad" "$skipped" $((SECONDS - from))
    if [ "$status" -ne 0 ] || [ "$bad" -ne 0 ]; then
        failed=$((failed + 1))
        grep -B1 '^FAILED' "$log" | grep -v '^ok\|^--' | sed 's/^/    /'
    else
        rm -f "$log"
    fi
done
rm -f "$out/word.log"
echo "${#words[@]} masks, $failed with failures"
[ "$failed" -eq 0 ]
