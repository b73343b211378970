#!/usr/bin/env bash
# Prepares a Debian or Ubuntu machine: setup.sh build|test|manual|bench|valgrind
#
# Checks that cargo is there and new enough, and installs what else is missing with apt-get: for `build` what the library
# and the examples need, for `test` also the second compiler with its fuzzer, C++, pkg-config and Python, for `manual` Doxygen, for
# `bench` Python, for `valgrind` that. Does nothing where all is there. What the benchmarks compare with, what draws, what makes
# and judges Debian packages and pages, and what the adapters are for is welcome and not needed: what cannot be installed is left
# out. With CI=true also the servers that the adapters are tested against, and a browser.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin"

die() {
    echo "setup: $*" >&2
    exit 1
}

welcome=()
case ${1-} in
build) tools=(make cmake ninja cc libc ld) ;;
test)
    tools=(make cmake ninja cc libc ld c++ clang fuzzer pkg-config python3)
    welcome=(dpkg-shlibdeps file wrk doxygen dot doxygen-awesome.css mandoc man groff uv.h liburing.h asio.hpp
        libcurl.pc hiredis.pc openssl.pc openssl glib-2.0.pc libuv.pc libpq.pc libcares.pc)
    # What is large or begins to serve when it is installed is not for everybody's machine; its tests are skipped by name.
    [ "${CI-}" != true ] || welcome+=(lintian chromium nginx redis-server postgres dnsmasq)
    ;;
manual)
    tools=(make cmake ninja cc libc ld doxygen)
    welcome=(doxygen-awesome.css)
    ;;
bench)
    tools=(make cmake ninja cc libc ld python3)
    welcome=(c++ pkg-config liburing.h uv.h ev.h event2/event.h asio.hpp fio matplotlib)
    ;;
valgrind) tools=(make cmake ninja cc libc ld valgrind) ;;
*) die "usage: setup.sh build|test|manual|bench|valgrind" ;;
esac

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
at_least() { # at_least FOUND WANTED
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}
if ! command -v cargo >/dev/null; then
    die "cargo is missing. Upcall is written in Rust: install Rust $wanted or newer, see https://rustup.rs"
fi
found=$(cargo --version | cut -d ' ' -f 2) || die "cargo does not run"
at_least "$found" "$wanted" || die "cargo is $found, Upcall needs $wanted or newer: 'rustup update', or see https://rustup.rs"

is_there() {
    case $1 in
    libc) echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1 ;;
    c++) echo '#include <cstdlib>' | c++ -x c++ -E - >/dev/null 2>&1 ;;
    asio.hpp) echo '#include <asio/version.hpp>' | c++ -x c++ -E - >/dev/null 2>&1 ;;
    *.pc) pkg-config --exists "${1%.pc}" ;;
    postgres) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null ;;
    *.h) echo "#include <$1>" | cc -E - >/dev/null 2>&1 ;;
    doxygen-awesome.css) [ -e /usr/share/doxygen-awesome-css/doxygen-awesome.css ] ;;
    matplotlib) /usr/bin/python3 -c 'import matplotlib' >/dev/null 2>&1 ;;
    fuzzer) echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | clang -x c - -fsanitize=fuzzer,address -o /dev/null >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null ;;
    esac
}
package_of() {
    case $1 in
    dpkg-shlibdeps) echo dpkg-dev ;;
    ninja) echo ninja-build ;;
    cc) echo gcc ;;
    libc) echo libc6-dev ;;
    ld) echo binutils ;;
    c++) echo g++ ;;
    liburing.h) echo liburing-dev ;;
    uv.h) echo libuv1-dev ;;
    ev.h) echo libev-dev ;;
    event2/event.h) echo libevent-dev ;;
    asio.hpp) echo libasio-dev ;;
    matplotlib) echo python3-matplotlib ;;
    dot) echo graphviz ;;
    doxygen-awesome.css) echo doxygen-awesome-css ;;
    man) echo man-db ;;
    libcurl.pc) echo libcurl4-openssl-dev ;;
    nginx) echo nginx-light ;;
    hiredis.pc) echo libhiredis-dev ;;
    openssl.pc) echo libssl-dev ;;
    glib-2.0.pc) echo libglib2.0-dev ;;
    libuv.pc) echo libuv1-dev ;;
    libpq.pc) echo libpq-dev ;;
    postgres) echo postgresql ;;
    libcares.pc) echo libc-ares-dev ;;
    dnsmasq) echo dnsmasq-base ;;
    fuzzer) echo libclang-rt-dev ;;
    *) echo "$1" ;;
    esac
}

# install PACKAGE...
install() {
    command -v apt-get >/dev/null || { echo "setup: please install: $* (there is no apt-get here)" >&2 && return 1; }
    local root=(env DEBIAN_FRONTEND=noninteractive)
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "setup: please install as root: $* (there is no sudo here)" >&2 && return 1; }
        root=(sudo "${root[@]}")
    fi
    local install=("${root[@]}" apt-get install --yes --no-install-recommends "$@")
    local update=("${root[@]}" apt-get update)
    echo "setup: installing $*"
    compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || "${update[@]}" # a fresh machine has no package lists
    "${install[@]}" </dev/null || { "${update[@]}" && "${install[@]}" </dev/null; } || # or stale ones
        { echo "setup: could not install: $*" >&2 && return 1; }
}

packages=()
for tool in "${tools[@]}"; do
    is_there "$tool" || packages+=("$(package_of "$tool")")
done
if [ ${#packages[@]} -gt 0 ]; then
    install "${packages[@]}" || exit 1
    for tool in "${tools[@]}"; do
        is_there "$tool" || die "$(package_of "$tool") is installed, but $tool still does not work"
    done
fi
packages=()
for tool in "${welcome[@]}"; do
    is_there "$tool" || packages+=("$(package_of "$tool")")
done
if [ ${#packages[@]} -gt 0 ]; then
    install "${packages[@]}" || for package in "${packages[@]}"; do
        install "$package" || echo "setup: going on without $package"
    done
fi

wanted=$(sed -n 's/^cmake_minimum_required(VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
found=$(cmake --version | sed -n 's/^cmake version \([0-9.]*\).*/\1/p')
at_least "$found" "$wanted" || die "cmake is $found, Upcall needs $wanted or newer"
