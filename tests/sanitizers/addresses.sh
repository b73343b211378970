#!/bin/sh
# addresses.sh PROGRAM SOURCE COMPILER ARGUMENT...: builds with AddressSanitizer and runs, once per backend.
set -eu
program=$1 source=$2 compiler=$3
shift 3
if ! echo 'int main(void) { return 0; }' | "$compiler" -fsanitize=address -x c - -o "$program"; then
    echo "$compiler has no AddressSanitizer here"
    exit 77
fi
"$compiler" -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Werror -O1 -g -fsanitize=address -fno-omit-frame-pointer \
    "$source" "$@" -o "$program"
for backend in io_uring epoll; do
    echo "$backend:"
    status=0
    UPCALL_BACKEND=$backend "$program" || status=$?
    [ $status = 0 ] || [ $status = 77 ] || exit $status
done
