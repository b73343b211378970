#!/bin/bash
# Does what docs/installing.md says, word for word; run by throwaway.sh: installing.sh SOURCE CARGO_TARGET_DIR VERSION
#
# Commands of "Use" are run in the folder of hello.c, all others in the sources. CMake's lines are the end of a CMakeLists.txt.
# What cargo has built is not built again.
set -eu -o pipefail
[ -n "${THROWAWAY-}" ] || { echo "it removes and installs things: run it by throwaway.sh"; exit 2; }
source=$1 cargo_target=$2 version=$3
fail() {
    echo "FAILED: $*"
    exit 1
}
for tool in ninja pkg-config dpkg-shlibdeps file; do
    command -v "$tool" >/dev/null || { echo "$tool is not installed"; exit 77; }
done
printf '3.25\n%s\n' "$(cmake --version | sed -n 's/^cmake version //p')" | sort --check --version-sort ||
    { echo "cmake is older than 3.25"; exit 77; }

# As on a machine that has no Upcall yet.
find /usr/local "$HOME/.local" -name '*upcall*' -prune -exec rm -r {} + 2>/dev/null || :
command -v sudo >/dev/null || install -m 755 /dev/stdin /usr/local/bin/sudo <<<$'#!/bin/sh\nexec "$@"'
for build in release deb; do
    mkdir -p "$source/build/$build/cargo"
    find "$source/build/$build" -mindepth 1 -maxdepth 1 ! -name cargo -exec rm -rf {} +
    [ "$source/build/$build/cargo" -ef "$cargo_target" ] || mount --bind "$cargo_target" "$source/build/$build/cargo"
done

project=$(mktemp -d)/hello
blocks=$project/blocks
mkdir -p "$blocks"
awk -v dir="$blocks" '
    /^## / { place = $2 == "Use" ? "project" : "sources" }
    /^```$/ { inside = 0 }
    inside { print > file }
    /^```[a-z]/ { inside = 1; file = sprintf("%s/%02d.%s.%s", dir, ++count, place, substr($0, 4)) }
' "$source/docs/installing.md"

run_hello() { # a program, which must be Upcall's of this version
    "$1" | tee "$project/said"
    grep -q "^Upcall $version on [a-z_]*$" "$project/said" || fail "$1 does not say so"
}
runs=0
for block in "$blocks"/*; do
    echo "==== ${block##*/}"
    cat "$block"
    cd "$source"
    case $block in
    *.sources.sh)
        bash -eu "$block" < <(yes) # apt-get asks before it removes
        ;;
    *.project.c)
        cp "$block" "$project/hello.c"
        ;;
    *.project.sh)
        cd "$project"
        rm -f hello hello-*
        bash -eu "$block"
        for program in hello hello-*; do
            [ ! -x "$program" ] || run_hello "./$program"
        done
        ;;
    *.project.cmake)
        cd "$project"
        rm -rf build
        {
            echo 'cmake_minimum_required(VERSION 3.22)'
            echo 'project(hello LANGUAGES C CXX)'
            echo 'add_executable(hello hello.c)'
            sed "s|path/to/upcall|$source|" "$block"
        } >CMakeLists.txt
        cmake -S . -B build -G Ninja -DUPCALL_CARGO_TARGET_DIR="$cargo_target"
        cmake --build build
        run_hello build/hello
        ;;
    *)
        fail "what is this?"
        ;;
    esac
    runs=$((runs + 1))
done
[ "$runs" -ge 12 ] || fail "docs/installing.md has lost its code"
left=$(find /usr/lib /usr/include /usr/local -name '*upcall*' ! -type d)
[ -z "$left" ] || fail "left behind: $left"
