#!/usr/bin/env bash
# miri.sh <target folder>: the unit tests that need no kernel, interpreted by Miri, which sees undefined behaviour.
# Where there is no Miri: rustup +nightly component add miri.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "miri: not installed; 'rustup +nightly component add miri'" >&2
    exit 77
fi
# Isolated it would not let the tests read the clock.
MIRIFLAGS=-Zmiri-disable-isolation exec cargo +nightly miri test --locked --target-dir "$1" --lib
