#!/usr/bin/env python3
"""Writes an initramfs (cpio, "newc").

pack.py OUT [--modules DIRECTORY NAME...] [PATH=FILE | PATH@TARGET | PATH/]...

PATH=FILE is an executable file, PATH@TARGET a symbolic link, PATH/ a directory. With --modules the kernel modules NAME
from below DIRECTORY, and what they depend on, become /modules/NN-NAME.ko, in the order of loading.
"""
import lzma
import pathlib
import re
import stat
import subprocess
import sys


class Archive:
    def __init__(self, out):
        self.out, self.inode, self.made = out, 0, set()

    def add(self, path, mode, data=b""):
        for parent in reversed(pathlib.PurePosixPath(path).parents):
            if str(parent) not in (".", "/") and str(parent) not in self.made:
                self.entry(str(parent), stat.S_IFDIR | 0o755)
        self.entry(path, mode, data)

    def entry(self, path, mode, data=b""):
        self.made.add(path)
        self.inode += 1
        name = path.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        self.put(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
        self.put(data)

    def put(self, data):
        self.out.write(data + b"\0" * (-len(data) % 4))

    def close(self):
        self.inode = -1
        self.entry("TRAILER!!!", 0)


def contents(file):
    if file.suffix == ".xz":
        return lzma.decompress(file.read_bytes())
    if file.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", file], check=True, stdout=subprocess.PIPE).stdout
    return file.read_bytes()


def modules(directory, names):
    """The modules with what they depend on, dependencies first. What is not there is built into the kernel."""
    files = {file.name.split(".")[0].replace("-", "_"): file for file in pathlib.Path(directory).rglob("*.ko*")}
    found = {}

    def visit(name):
        name = name.replace("-", "_")
        if name in found or name not in files:
            return
        data = contents(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in filter(None, depends[1].decode().split(",") if depends else []):
            visit(other)
        found[name] = data

    for name in names:
        visit(name)
    return found


def main(out, *words):
    words = list(words)
    with open(out, "wb") as file:
        archive = Archive(file)
        if words[:1] == ["--modules"]:
            for number, (name, data) in enumerate(modules(words[1], words[2:]).items()):
                archive.add("modules/%02d-%s.ko" % (number, name), stat.S_IFREG | 0o644, data)
            words = []
        for word in words:
            path, separator, source = re.fullmatch(r"([^=@]*)([=@]?)(.*)", word).groups()
            if separator == "=":
                archive.add(path, stat.S_IFREG | 0o755, pathlib.Path(source).read_bytes())
            elif separator == "@":
                archive.add(path, stat.S_IFLNK | 0o777, source.encode())
            else:
                archive.add(path.rstrip("/"), stat.S_IFDIR | 0o755)
        archive.close()


main(*sys.argv[1:])
