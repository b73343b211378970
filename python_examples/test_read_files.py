#!/usr/bin/python3
"""The Python examples: a thousand files, through batches, and what can go wrong: test_read_files.py DOCS

UPCALL_LIBRARY names the library, UPCALL_BACKEND the backend; exit status 77 means that it is denied here."""
import errno
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import unittest

import upcall
from read_files import read_files

DOCS = sys.argv.pop(1)


class ReadFiles(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="upcall-python.")
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        numbers = random.Random(1)
        cls.files = {}
        for i in range(1000):  # of all sizes: nothing, a part of a piece, just as many pieces, some more
            size = [0, numbers.randrange(5000), 4096 * numbers.randrange(1, 5), numbers.randrange(40000)][i % 4]
            path = str(cls.directory / f"{i}.bin")
            cls.files[path] = numbers.randbytes(size)
            pathlib.Path(path).write_bytes(cls.files[path])

    def setUp(self):
        self.descriptors = len(os.listdir("/proc/self/fd"))

    def test_a_thousand_files(self):
        for depth in (1, 64, 1500):
            with self.subTest(depth=depth), upcall.Loop() as loop:
                self.assertEqual(loop.backend, os.environ["UPCALL_BACKEND"])
                found = list(read_files(loop, self.files, depth=depth, piece=4096))
                self.assertEqual(len(found), 1000)
                self.assertEqual(dict(found), self.files)
        self.assertEqual(len(os.listdir("/proc/self/fd")), self.descriptors)

    def test_what_cannot_be_read_is_told(self):
        missing, directory = str(self.directory / "missing"), str(self.directory)
        some = list(self.files)[:10]
        with upcall.Loop() as loop:
            found = dict(read_files(loop, [missing, *some, directory], depth=3))
            self.assertEqual(list(read_files(loop, [])), [])
        self.assertIsInstance(found[missing], FileNotFoundError)
        self.assertEqual(found[directory].errno, errno.EISDIR)
        self.assertEqual([found[path] for path in some], [self.files[path] for path in some])
        self.assertEqual(len(os.listdir("/proc/self/fd")), self.descriptors)

    def test_who_stops_asking_leaves_nothing_in_flight(self):
        with upcall.Loop() as loop:
            for _ in range(20):
                reading = read_files(loop, self.files, depth=100)
                next(reading)
                reading.close()
            self.assertEqual(len(list(read_files(loop, self.files))), 1000)
        self.assertEqual(len(os.listdir("/proc/self/fd")), self.descriptors)

    def test_a_refused_submit_is_an_exception_with_its_reason(self):
        with upcall.Loop() as loop, self.assertRaisesRegex(OSError, "op 2 of 2: .*kind") as refused:
            loop.submit([upcall.close(-1), upcall.Op()])
        self.assertEqual(refused.exception.errno, errno.EINVAL)

    def test_the_program_says_what_sha256sum_says(self):
        some = list(self.files)[:50]
        program = pathlib.Path(__file__).with_name("read_files.py")
        ours = subprocess.run([sys.executable, program, *some], check=True, stdout=subprocess.PIPE, text=True).stdout
        theirs = subprocess.run(["sha256sum", *some], check=True, stdout=subprocess.PIPE, text=True).stdout
        self.assertEqual(sorted(line.split()[1:] for line in ours.splitlines()), sorted(line.split() for line in theirs.splitlines()))

    def test_the_code_in_the_manual(self):
        blocks = re.findall("```python\n(.*?)```", pathlib.Path(DOCS).read_text(encoding="utf-8"), re.DOTALL)
        self.assertGreater(len(blocks), 0)
        for block in blocks:
            run = subprocess.run([sys.executable, "-c", block], cwd=self.directory, text=True, stdout=subprocess.PIPE,
                                 env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent)}, check=True)
            self.assertEqual(len(run.stdout.splitlines()), 1000)


if __name__ == "__main__":
    try:
        with upcall.Loop():
            pass
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(77 if error.errno in (errno.EPERM, errno.ENOSYS) else 1)
    unittest.main(verbosity=2)
