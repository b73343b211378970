#!/bin/sh
# build.sh FOLDER: builds the boundary fuzzer there, FOLDER/boundary: the library with the address sanitizer, coverage, and
# its debug assertions and overflow checks, the C side with libFuzzer, address and undefined-behaviour sanitizers.
# Status 77: there is no clang.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
folder=$1
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
command -v clang >/dev/null || {
    echo "fuzz: clang is not installed: tools/setup.sh test"
    exit 77
}
mkdir -p "$folder"
host=$(rustc -vV | sed -n 's/^host: //p')
# Unstable flags of a stable compiler. Coverage as libFuzzer reads it: an 8-bit counter for each edge, and what is compared.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
env -u CARGO_BUILD_TARGET -u CARGO_UNSTABLE_BUILD_STD RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address $coverage" CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
    cargo build --quiet --release --locked --lib --manifest-path "$root/Cargo.toml" --target-dir "$folder/cargo" --target "$host"
sed 's/.*/FUNCTION(&)/' "$root/tests/symbols.txt" >"$folder/functions.inc"
# The C side is not covered: the figures are the library's.
for part in boundary objects operations; do
    clang -std=c11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Wshadow -Werror -fsanitize=address,undefined \
        -fno-sanitize-recover=undefined -fno-omit-frame-pointer -I"$root/include" -I"$folder" \
        -c "$here/$part.c" -o "$folder/$part.o"
done
clang -fsanitize=fuzzer,address,undefined "$folder"/boundary.o "$folder"/objects.o "$folder"/operations.o \
    "$folder/cargo/$host/release/libupcall.a" -lpthread -ldl -lm -o "$folder/boundary"
