#!/bin/sh
# fuzz.sh CLANG FOLDER SOURCE [ARGUMENT...]: builds fuzz.c there with libFuzzer and sanitizers, and gives it 50,000 inputs, or
# what libFuzzer's arguments say.
set -eu
clang=$1 folder=$2 source=$3
shift 3
mkdir -p "$folder/found"
"$clang" -std=c11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Wshadow -Werror -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    "$source/fuzz.c" -o "$folder/fuzz"
[ $# -gt 0 ] || set -- -runs=50000 -max_len=700
"$folder/fuzz" -timeout=60 -artifact_prefix="$folder/" "$@" "$folder/found" "$source/corpus"
