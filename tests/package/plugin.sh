#!/bin/sh
# The static library in plugins, each with its own copy, of a program that has the shared library: plugin.sh WORK COMPILER
# INCLUDE_DIR LIB_DIR APP_SOURCE VERSION
set -eu
work=$1 compiler=$2 include=$3 lib=$4 app=$5 version=$6
mkdir -p "$work"
cd "$work"
for plugin in one two; do
    "$compiler" -shared -fPIC -Dmain=run_plugin "-DVERSION=\"$version\"" "-I$include" "$app" "$lib/libupcall.a" -lpthread -ldl -lm \
        -Wl,--exclude-libs,ALL -Wl,-z,nodelete -Wl,-z,defs -o $plugin.so
    if nm -D --defined-only $plugin.so | grep ' upcall_'; then
        echo "FAILED: $plugin.so shows Upcall's functions"
        exit 1
    fi
done
cat >host.c <<'EOS'
#include <dlfcn.h>
#include <stdio.h>

int main(void) {
    const char *const names[] = {"./one.so", "./two.so"};
    int run_app(void);
    for (int i = 0; i < 2; i++) {
        void *plugin = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        int (*run)(void) = plugin ? (int (*)(void))dlsym(plugin, "run_plugin") : NULL;
        if (!run || run() != 0 || run_app() != 0 || dlclose(plugin) != 0) {
            printf("%s: %s\n", names[i], dlerror());
            return 1;
        }
    }
    return run_app();
}
EOS
"$compiler" -Dmain=run_app "-DVERSION=\"$version\"" "-I$include" -c "$app" -o app.o
"$compiler" host.c app.o "-L$lib" -lupcall "-Wl,-rpath,$lib" -ldl -o host
./host
