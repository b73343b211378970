#!/bin/sh
# build_and_run.sh PROGRAM COMPILER ARGUMENT...
set -eu
program=$1
shift
case " $* " in *" -flto "*) # takes a plugin of the linker, which may be a package of its own
    echo 'int main(void) { return 0; }' | "$1" -flto -x c - -o "$program" || { echo "$1 has no -flto here"; exit 77; } ;;
esac
"$@" -o "$program"
"$program"
