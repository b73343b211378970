#!/usr/bin/python3
"""Reads many files through one loop: read_files.py PATH...

Prints size, checksum and name of each, as they come. A fixed number of files is under way; each turn submits the next
operation of every file that is ready for one, waits, and takes the records in batches: c_examples/reap.c in Python."""
import ctypes
import hashlib
import os
import sys

import upcall


class File:
    """A file under way. It has one operation in flight, whose record comes back with the number of its place."""

    def __init__(self, path, buffer):
        self.path, self.buffer, self.fd, self.pieces, self.offset, self.error = path, buffer, -1, [], 0, None
        self.name = os.fsencode(path)  # an op only points to it, and submit() comes later: a temporary would be gone by then

    def begin(self):
        self.then = self.opened
        return upcall.open(-100, self.name, os.O_RDONLY, 0)  # -100: AT_FDCWD

    def opened(self, result):
        if result < 0:
            self.error = upcall.error(result)
            return None
        self.fd = result
        return self.read()

    def read(self):
        op = upcall.pread(self.fd, ctypes.addressof(self.buffer), len(self.buffer), self.offset)
        op.flags = upcall.FULL  # so a short one means the end of the file
        self.then = self.was_read
        return op

    def was_read(self, result):
        if result < 0:
            self.error = upcall.error(result)
        else:
            self.pieces.append(ctypes.string_at(self.buffer, result))
            self.offset += result
            if result == len(self.buffer):
                return self.read()
        self.then = self.closed
        return upcall.close(self.fd)

    def closed(self, result):
        if result < 0 and self.error is None:
            self.error = upcall.error(result)


class Reader:
    """Files on their way through a loop, at most `depth` at a time."""

    def __init__(self, loop, paths, depth, piece):
        self.loop, self.paths, self.under_way = loop, iter(paths), 0
        self.buffers = [ctypes.create_string_buffer(piece) for _ in range(depth)]
        self.records = (upcall.Event * depth)()  # a place has one operation in flight, so there is room for all
        self.places, self.ops = [None] * depth, []
        for place in range(depth):
            self.begin(place)

    def add(self, place, op):
        op.user = place
        self.ops.append(op)

    def begin(self, place):
        for path in self.paths:
            self.places[place] = File(path, self.buffers[place])
            self.add(place, self.places[place].begin())
            self.under_way += 1
            return

    def turn(self):
        """Submits, waits, and returns the files that have ended."""
        ended = []
        if self.ops:
            self.loop.submit(self.ops)
            self.ops.clear()
        self.loop.poll()
        for record in self.loop.reap(self.records):
            file = self.places[record.user]
            if (op := file.then(record.result)) is not None:
                self.add(record.user, op)
                continue
            ended.append(file)
            self.under_way -= 1
            self.begin(record.user)
        return ended


def read_files(loop, paths, depth=64, piece=65536):
    """Yields (path, bytes or OSError) for each path, in the order in which they end."""
    reader = Reader(loop, paths, depth, piece)
    try:
        while reader.under_way:
            for file in reader.turn():
                yield file.path, file.error or b"".join(file.pieces)
    finally:  # whoever stops asking: the kernel may still write into the buffers of what is under way
        reader.paths = iter(())
        while reader.under_way:
            reader.turn()


def main():
    failed = False
    with upcall.Loop() as loop:
        for path, data in read_files(loop, sys.argv[1:]):
            if isinstance(data, OSError):
                print(f"{path}: {data.strerror}", file=sys.stderr)
                failed = True
            else:
                print(f"{len(data):10} {hashlib.sha256(data).hexdigest()} {path}")
        print(f"on {loop.backend}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
