#!/bin/sh
# build_and_run.sh PROGRAM COMPILER ARGUMENT...
set -eu
program=$1
shift
"$@" -o "$program"
"$program"
