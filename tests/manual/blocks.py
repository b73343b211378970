#!/usr/bin/env python3
"""The code of one page of the manual, as it is printed: blocks.py PAGE --prefix INSTALLED [--work DIRECTORY]

A fenced block that begins with a comment naming a file is that file. C and C++ without a name are functions, compiled together in
their order. Both are compiled by gcc and clang, without a warning. In a `console` block every line after "$ " is run, on both
backends, and what follows must be what it prints, where a line "..." stands for any lines. `sh` blocks are only read: they
need what a test cannot have.

INSTALLED is where `cmake --install` put Upcall. A page that says <!-- needs: NAME --> is skipped where there is no such header,
or package of pkg-config; one that says <!-- compilers: NAME ... --> is only for these. Exit status: 0, 1, or 77.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

FILE_NAME = re.compile(r"^(?:/\*|//|#) ?([\w.]+\.(?:c|h|cpp|hpp|txt|json))\b")
STRICT = ["-Wall", "-Wextra", "-Wshadow", "-Werror", "-pthread"]
C_PROLOGUE = """#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <upcall.h>
"""
CPP_PROLOGUE = """#include <array>
#include <iostream>
#include <string>
#include <thread>
#include <upcall.hpp>
#include <vector>
#include <poll.h>
using namespace std::literals;
"""
LANGUAGES = {
    "c": (C_PROLOGUE, "c", "c11", ["gcc", "clang"]),
    "cpp": (CPP_PROLOGUE, "cpp", "c++20", ["g++", "clang++"]),
}


def blocks(page):
    """(line number, language, text) of each fenced block."""
    language = None
    for number, line in enumerate(page.splitlines(), 1):
        if language is None and (fence := re.match(r"^```(\w*)$", line)):
            language, start, text = fence[1], number, []
        elif language is not None and line == "```":
            yield start, language, "\n".join(text) + "\n"
            language = None
        elif language is not None:
            text.append(line)


class Failure(Exception):
    pass


class Page:
    def __init__(self, path, prefix, work):
        self.path, self.work = path, work
        self.text = path.read_text()
        self.environment = dict(os.environ, CMAKE_PREFIX_PATH=str(prefix), LD_LIBRARY_PATH=str(prefix / "lib"),
                                PKG_CONFIG_PATH=f"{prefix}/lib/pkgconfig:{os.environ.get('PKG_CONFIG_PATH', '')}")

    def run(self, command, **environment):
        return subprocess.run(command, cwd=self.work, env={**self.environment, **environment}, text=True, timeout=300,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def flags(self, package):
        return self.run(["pkg-config", "--cflags", package]).stdout.split()

    def needs(self):
        return re.findall(r"^<!-- needs: (\S+) -->$", self.text, re.MULTILINE)

    def has(self, name):
        if ".h" not in name:
            return self.run(["pkg-config", "--exists", name]).returncode == 0
        return self.run(["sh", "-c", f"echo '#include <{name}>' | g++ -x c++ -DASIO_STANDALONE -E - >/dev/null"]).returncode == 0

    def compile(self, source, standard, compilers):
        packages = ["upcall"] + [name for name in self.needs() if ".h" not in name]
        flags = [flag for package in packages for flag in self.flags(package)]
        chosen = re.search(r"^<!-- compilers: (.+) -->$", self.text, re.MULTILINE)
        for compiler in chosen[1].split() if chosen else compilers:
            if not shutil.which(compiler):
                print(f"    {compiler} is not installed")
                continue
            found = self.run([compiler, f"-std={standard}", *STRICT, *flags, "-fsyntax-only", source])
            if found.returncode != 0:
                raise Failure(f"{source} is not compiled by {compiler}:\n{found.stdout}")
            print(f"    {source}: {compiler}")

    def console(self, text, backend, is_built):
        for session in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, wanted = session.partition("\n")
            if is_built and re.match("cc |g\\+\\+ |cmake ", command):
                continue
            found = self.run(["bash", "-c", command], UPCALL_BACKEND=backend)
            pattern = "".join("(?s:.*?)" if line == "...\n" else re.escape(line) for line in wanted.splitlines(True))
            if not re.fullmatch(pattern, found.stdout):
                raise Failure(f"on {backend}: $ {command}\nprinted:\n{found.stdout}instead of:\n{wanted}")
            print(f"    {backend}: $ {command}")

    def test(self, backends):
        functions = {}
        consoles = []
        for line, language, text in blocks(self.text):
            name = FILE_NAME.match(text)
            if name:
                (self.work / name[1]).write_text(text)
            if language in LANGUAGES:
                prologue, suffix, standard, compilers = LANGUAGES[language]
                if name:
                    self.compile(name[1], "gnu11" if suffix == "c" else standard, compilers)
                else:
                    functions.setdefault(language, prologue)
                    functions[language] += f'#line {line + 1} "{self.path.name}"\n{text}'
            elif language == "console":
                consoles.append(text)
            elif language == "sh":
                if self.run(["bash", "-n", "-c", text]).returncode != 0:
                    raise Failure(f"line {line}: this is no shell")
            elif language not in ("text", "cmake", "json"):
                raise Failure(f"line {line}: what is a block of {language!r}?")
        for language, source in functions.items():
            _, suffix, standard, compilers = LANGUAGES[language]
            (self.work / f"functions.{suffix}").write_text(source)
            self.compile(f"functions.{suffix}", standard, compilers)
        for backend in backends if consoles else []:
            for text in consoles:
                self.console(text, backend, is_built=backend != backends[0])


PROBE = """#include <upcall.h>
int main(void) {
    upcall_loop *loop;
    int rc = upcall_loop_new(NULL, &loop);
    upcall_loop_free(loop);
    return rc < 0;
}
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--prefix", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="upcall-manual.") as scratch:
        work = options.work or pathlib.Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        page = Page(options.page.resolve(), options.prefix.resolve(), work)
        for name in page.needs():
            if not page.has(name):
                print(f"{name} is not installed")
                return 77
        try:
            (work / "probe.c").write_text(PROBE)
            built = page.run(["sh", "-c", "cc probe.c $(pkg-config --cflags --libs upcall) -o probe"])
            if built.returncode != 0:
                raise Failure(f"nothing is compiled against {options.prefix}:\n{built.stdout}")
            backends = [b for b in ("io_uring", "epoll") if page.run(["./probe"], UPCALL_BACKEND=b).returncode == 0]
            print(f"{options.page.name} on {' and '.join(backends)}")
            page.test(backends)
        except Failure as failure:
            print(f"FAILED: {failure}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
