#!/usr/bin/python3
"""c_examples/http_server.c keeps its promises: server.py HTTP_SERVER [--walk] [TEST...]

UPCALL_BACKEND in the environment chooses the backend; exit status 77 means that it is denied here. With --walk the servers
open paths as on a kernel without openat2. Nothing here depends on how long something takes: where a server has to act by
itself, the test waits until it has, and only a minute without that is a failure."""
import contextlib
import ctypes
import email
import http.client
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from email.utils import formatdate

PROGRAM = None
PATIENCE = 60
OLD = 1_000_000_000  # when most files were changed last: Sun, 09 Sep 2001 01:46:40 GMT
OPTIONS = []
CRLF = "\r\n"


def prepare_server():
    """In the child: a server never outlives the test, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Server:
    def __init__(self, root, *options, wrapper=()):
        self.process = subprocess.Popen([*wrapper, PROGRAM, *OPTIONS, *options, str(root)], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, preexec_fn=prepare_server)
        line = self.process.stdout.readline()
        if not (found := re.match(r"listening on \S+ port (\d+): (\d+) loops", line)):
            status, errors = self.process.wait(), self.process.stderr.read()
            if status == 77:
                print(errors, file=sys.stderr)
                os._exit(77)
            raise AssertionError(f"the server ended with {status}: {line}{errors}")
        self.port, self.loops, self.root = int(found[1]), int(found[2]), str(root)

    def open(self, what):
        """How many descriptors it has open whose link begins so."""
        count = 0
        for fd in pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(fd).startswith(what)
        return count

    def wait_idle(self):
        """Until it has nothing open but its listeners and the root."""
        def left():
            return self.open("socket:") - self.loops, self.open(self.root + "/")

        wait_until(lambda: left() == (0, 0), lambda: f"connections and files that are left open: {left()}")

    def connect(self):
        return Client(self.port)

    def signal(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """Waits for it; returns the requests it has counted."""
        try:
            output, errors = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the server does not end") from None
        assert self.process.returncode == 0, f"the server ended with {self.process.returncode}: {output}{errors}"
        assert not errors, errors
        return sum(int(n) for n in re.findall(r"(\d+) requests", output))

    def stop(self):
        self.signal()
        return self.end()

    def wait_refusing(self):
        def refuses():
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except (ConnectionRefusedError, ConnectionResetError):
                return True
            return False

        wait_until(refuses, lambda: "the server goes on accepting")


def wait_until(condition, message):
    for _ in range(PATIENCE * 20):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(message())


class Gone(Exception):
    """The connection ended: with `received` of an answer that was not complete, and perhaps with a reset."""

    def __init__(self, received, was_reset=False):
        super().__init__(f"the connection ended after {received[:200]!r}")
        self.received, self.was_reset = received, was_reset


class Answer:
    def __init__(self, status, fields, body):
        self.status, self.fields, self.body = status, fields, body

    def __getitem__(self, name):
        return self.fields.get(name.lower())


class Client:
    """A connection that reads answers exactly, and notices what should not be there."""

    def __init__(self, port, narrow=False):
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if narrow:  # what is not read stays with the server
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes) else data.encode("latin-1"))

    def more(self):
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionError:
            raise Gone(self.received, True) from None
        if not data:
            raise Gone(self.received)
        self.received += data

    def answer(self, head=False):
        while b"\r\n\r\n" not in self.received:
            self.more()
        top, rest = self.received.split(b"\r\n\r\n", 1)
        status, *lines = top.decode("latin-1").split(CRLF)
        assert (found := re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", status)), status
        fields = {}
        for line in lines:
            name, value = line.split(": ", 1)
            assert name.lower() not in fields, f"{name} is there twice"
            fields[name.lower()] = value
        assert "date" in fields
        code = int(found[1])
        size = 0 if head or code == 304 else int(fields["content-length"])
        pieces, have = [rest], len(rest)
        while have < size:  # not by more(): that would copy what is there again and again
            data = self.socket.recv(1 << 20)
            if not data:
                raise Gone(top + b"".join(pieces))
            pieces.append(data)
            have += len(data)
        rest = b"".join(pieces)
        self.received = rest[size:]
        return Answer(code, fields, rest[:size])

    def get(self, target, *fields, method="GET"):
        self.send(request(target, *fields, method=method))
        return self.answer(head=method == "HEAD")

    def assert_closed(self):
        """The server has nothing more to say, and says so: a reset might have taken an answer along."""
        try:
            self.more()
        except Gone as end:
            assert not end.received, f"more came: {end.received}"
            assert not end.was_reset, "the connection was reset"
            self.socket.close()
            return
        raise AssertionError(f"more came: {self.received}")

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def request(target, *fields, method="GET", version="1.1"):
    return CRLF.join([f"{method} {target} HTTP/{version}", "Host: localhost", *fields, "", ""])


class Case(unittest.TestCase):
    options = ()

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="upcall-http.")
        cls.addClassCleanup(directory.cleanup)
        cls.outside = pathlib.Path(directory.name)
        cls.root = cls.outside / "root"
        cls.root.mkdir()
        numbers = random.Random(1)
        cls.files = {name: numbers.randbytes(size) for name, size in {
            "empty.txt": 0, "one.css": 1, "small.txt": 1000, "page.html": 20000, "almost.js": 32000, "edge.png": 32768,
            "over.json": 40000, "piece.bin": 256 * 1024, "large.bin": 5_000_003, "index.html": 300,
            "directory/index.html": 400, "directory/deep/er/file.svg": 500, "with space é.txt": 600, "..dots": 5,
            "%41.txt": 6}.items()}
        for name, data in cls.files.items():
            path = cls.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, (OLD, OLD))
        (cls.root / "no_index").mkdir()
        (cls.outside / "secret").write_text("secret")
        (cls.root / "link.txt").symlink_to("small.txt")
        (cls.root / "link_out").symlink_to("../secret")
        (cls.root / "link_absolute").symlink_to(cls.outside / "secret")
        (cls.root / "link_directory").symlink_to("directory")
        (cls.root / "link_up").symlink_to("..")
        os.mkfifo(cls.root / "fifo")
        cls.server = Server(cls.root, *cls.options)
        cls.addClassCleanup(cls.server.process.kill)

    @classmethod
    def tearDownClass(cls):
        cls.server.wait_idle()
        cls.server.stop()

    def start(self, *options, wrapper=()):
        """A server of the test's own; the test has to stop() it, but need not when it fails."""
        server = Server(self.root, *options, wrapper=wrapper)
        self.addCleanup(server.process.kill)
        return server

    def connect(self, server=None):
        client = (server or self.server).connect()
        self.addCleanup(client.socket.close)
        return client


class Files(Case):
    def test_every_byte_and_what_is_said_about_it(self):
        types = {"txt": "text/plain; charset=utf-8", "css": "text/css; charset=utf-8", "png": "image/png",
                 "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "json": "application/json",
                 "bin": "application/octet-stream", "svg": "image/svg+xml"}
        client = self.connect()
        for name, data in self.files.items():
            if re.search("[^a-z_./]", name):
                continue
            with self.subTest(name):
                whole = client.get("/" + name)
                self.assertEqual((whole.status, len(whole.body)), (200, len(data)))
                self.assertEqual(whole.body, data)
                self.assertEqual(whole["Last-Modified"], "Sun, 09 Sep 2001 01:46:40 GMT")
                self.assertRegex(whole["ETag"], r'^"[!#-~]+"$')
                self.assertEqual(whole["Accept-Ranges"], "bytes")
                self.assertEqual(whole["Content-Type"], types.get(name.rsplit(".")[-1], "application/octet-stream"))
                self.assertIsNone(whole["Connection"])
                head = client.get("/" + name, method="HEAD")
                self.assertEqual((head.status, head.fields | {"date": 0}), (200, whole.fields | {"date": 0}))

    def test_names_are_decoded_once(self):
        client = self.connect()
        for target, name in (("/with%20space%20%C3%A9.txt", "with space é.txt"), ("/sm%61ll%2etxt", "small.txt"),
                             ("/%2541.txt", "%41.txt"), ("/..dots", "..dots"), ("/small.txt?query=/../x", "small.txt"),
                             ("/directory%2Fdeep/er//file.svg", "directory/deep/er/file.svg"),
                             ("/directory/./deep/../../small.txt", "small.txt"), ("/", "index.html"), ("/?q", "index.html"),
                             ("/directory/", "directory/index.html"), ("/directory/deep/..", "directory/index.html"),
                             ("/directory/.", "directory/index.html"), ("http://other/small.txt", "small.txt"),
                             ("HTTP://other", "index.html"), ("http://other?x", "index.html")):
            with self.subTest(target):
                self.assertEqual(client.get(target).body, self.files[name])

    def test_nothing_leads_out_of_the_root(self):
        client = self.connect()
        for target, statuses in {"/../secret": [400], "/..%2fsecret": [400], "/%2e%2e/secret": [400], "/%2E%2e%2Fsecret": [400],
                                 "/directory/../../secret": [400], "/directory/%2e%2e/..//../secret": [400], "/..": [400],
                                 "/directory/../..": [400], "//../secret": [400], "/./../secret": [400], "/link_out": [404],
                                 "/link_absolute": [404], "/link_up/secret": [404], "/link_up/root/small.txt": [404],
                                 "/link.txt": [404], "/link_directory/index.html": [404], "/link_directory/": [404],
                                 f"/{self.outside}/secret": [404], "/..\\secret": [404], "/small.txt%00.html": [400],
                                 "/proc/self/root/etc/passwd": [404], "/fifo": [404], "/small.txt/": [404],
                                 "/small.txt/x": [404], "/%252e%252e/secret": [404], "/" + "x" * 300: [404],
                                 "/%": [400], "/%4": [400], "/%zz": [400], "*": [400], "small.txt": [400],
                                 "/" + "a/" * 2500: [414]}.items():
            with self.subTest(target[:50]):
                answer = client.get(target)
                self.assertIn(answer.status, statuses)
                self.assertNotIn(b"secret", answer.body)

    def test_a_directory_is_asked_for_with_its_slash(self):
        client = self.connect()
        (self.root / "odd é\n?").mkdir(exist_ok=True)
        for target, location in {"/directory": "/directory/", "/directory?a=b": "/directory/?a=b",
                                 "//directory": "/directory/", "/%64irectory": "/directory/",
                                 "/odd%20%C3%A9%0A%3f": "/odd%20%C3%A9%0A%3F/", "/directory/deep": "/directory/deep/"}.items():
            with self.subTest(target):
                answer = client.get(target)
                self.assertEqual((answer.status, answer["Location"]), (301, location))
        for target in ("/no_index/", "/no_index/index.html"):
            self.assertEqual(client.get(target).status, 404)

    def test_a_file_without_the_right_to_read_it_is_forbidden(self):
        path = self.root / "forbidden.txt"
        path.write_text("x")
        path.chmod(0)
        wrapper = []
        if os.geteuid() == 0:  # root may read everything, unless this is taken away
            wrapper = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
        server = self.start(wrapper=wrapper)
        client = self.connect(server)
        self.assertEqual(client.get("/forbidden.txt").status, 403)
        self.assertEqual(client.get("/small.txt").body, self.files["small.txt"])
        client.socket.close()
        server.stop()


class Ranges(Case):
    def test_one_range(self):
        client = self.connect()
        for name in ("small.txt", "large.bin", "edge.png"):
            data = self.files[name]
            size = len(data)
            for text, begin, end in (("0-0", 0, 1), ("0-99", 0, 100), ("5-", 5, size), ("-7", size - 7, size),
                                     (f"{size - 1}-", size - 1, size), (f"0-{size + 5}", 0, size), ("0-", 0, size),
                                     (f"-{size + 9}", 0, size), (f"1-{'9' * 30}", 1, size), (" 3-4 , ", 3, 5),
                                     (f"2-3,{size}-", 2, 4)):
                with self.subTest(f"{name} {text}"):
                    answer = client.get("/" + name, f"Range: bytes={text}")
                    self.assertEqual((answer.status, answer["Content-Range"]), (206, f"bytes {begin}-{end - 1}/{size}"))
                    self.assertEqual(answer.body, data[begin:end])

    def test_several_ranges(self):
        client = self.connect()
        for name, ranges in (("small.txt", [(0, 10), (20, 21), (990, 1000)]), ("large.bin", [(4_000_000, 5_000_003), (0, 700_000)]),
                             ("piece.bin", [(i * 1000, i * 1000 + 500) for i in range(8)])):
            with self.subTest(name):
                data = self.files[name]
                answer = client.get("/" + name, "Range: bytes=" + ", ".join(f"{a}-{b - 1}" for a, b in ranges))
                self.assertEqual(answer.status, 206)
                kind, boundary = answer["Content-Type"].split("; boundary=")
                self.assertEqual(kind, "multipart/byteranges")
                expected = b"".join(
                    f"\r\n--{boundary}\r\nContent-Type: {client.get('/' + name, method='HEAD')['Content-Type']}\r\n"
                    f"Content-Range: bytes {a}-{b - 1}/{len(data)}\r\n\r\n".encode() + data[a:b] for a, b in ranges)
                self.assertEqual(answer.body, expected + f"\r\n--{boundary}--\r\n".encode())
                parsed = email.message_from_bytes(f"Content-Type: {answer['Content-Type']}\r\n\r\n".encode() + answer.body)
                self.assertEqual(len(parsed.get_payload()), len(ranges))

    def test_what_is_no_range_or_too_much_gives_the_whole(self):
        client = self.connect()
        for text in ("bytes=", "bytes=,", "bytes=x-1", "bytes=5-4", "bytes=-", "bytes=1-2-3", "lines=1-2", "bytes 1-2",
                     "bytes=0-1,x", "bytes=0-,0-", "bytes=" + ",".join(f"{i}-{i}" for i in range(9)), "bytes=0-998,0-998"):
            with self.subTest(text):
                answer = client.get("/small.txt", "Range: " + text)
                self.assertEqual((answer.status, answer["Content-Range"]), (200, None))
                self.assertEqual(answer.body, self.files["small.txt"])
        answer = client.get("/small.txt", "Range: bytes=0-1", method="HEAD")
        self.assertEqual((answer.status, answer["Content-Length"]), (200, "1000"))

    def test_a_range_beyond_the_end_cannot_be_satisfied(self):
        client = self.connect()
        for name, text in (("small.txt", "1000-"), ("small.txt", "-0"), ("small.txt", "2000-3000, 1000-1000"), ("empty.txt", "0-")):
            with self.subTest(text):
                answer = client.get("/" + name, "Range: bytes=" + text)
                self.assertEqual((answer.status, answer["Content-Range"]), (416, f"bytes */{len(self.files[name])}"))

    def test_if_range_names_the_version_the_client_has_a_part_of(self):
        client = self.connect()
        whole = client.get("/small.txt", method="HEAD")
        for value, status in ((whole["ETag"], 206), (whole["Last-Modified"], 206), ('"other"', 200), ("W/" + whole["ETag"], 200),
                              (formatdate(OLD + 1, usegmt=True), 200), ("nonsense", 200)):
            with self.subTest(value):
                self.assertEqual(client.get("/small.txt", "Range: bytes=0-4", f"If-Range: {value}").status, status)

    def test_a_file_just_changed_has_a_weak_tag(self):
        path = self.root / "fresh.txt"
        client = self.connect()
        path.write_text("fresh")
        os.utime(path, (time.time() + 1000,) * 2)  # for as long as the test may take
        tag = client.get("/fresh.txt")["ETag"]
        self.assertRegex(tag, '^W/"')
        self.assertEqual(client.get("/fresh.txt", f"If-None-Match: {tag}").status, 304)
        self.assertEqual(client.get("/fresh.txt", f"If-Match: {tag}").status, 412)
        self.assertEqual(client.get("/fresh.txt", f"If-Range: {tag}", "Range: bytes=0-0").status, 200)
        os.utime(path, (OLD, OLD))
        self.assertNotEqual(client.get("/fresh.txt")["ETag"], tag)


class Conditions(Case):
    def test_conditions(self):
        client = self.connect()
        tag = client.get("/small.txt")["ETag"]
        before, same, after = (formatdate(OLD + i, usegmt=True) for i in (-1, 0, 1))
        for fields, status in (
                ([f"If-None-Match: {tag}"], 304), ([f"If-None-Match: W/{tag}"], 304), (["If-None-Match: *"], 304),
                ([f'If-None-Match: "a,b", {tag}'], 304), (['If-None-Match: "x"', f"If-None-Match: {tag}"], 304),
                (['If-None-Match: "x"'], 200), ([f"If-None-Match: {tag[:-1]}"], 200), (["If-None-Match:"], 200),
                ([f"If-Modified-Since: {same}"], 304), ([f"If-Modified-Since: {after}"], 304),
                ([f"If-Modified-Since: {before}"], 200), (["If-Modified-Since: yesterday"], 200),
                (["If-Modified-Since: Sunday, 09-Sep-01 01:46:40 GMT"], 304), (["If-Modified-Since: Sun Sep  9 01:46:40 2001"], 304),
                (["If-Modified-Since: Sunday, 09-Sep-01 01:46:39 GMT"], 200), (["If-Modified-Since: Sun Sep  9 01:46:39 2001"], 200),
                (['If-None-Match: "x"', f"If-Modified-Since: {after}"], 200),
                ([f"If-Match: {tag}"], 200), (["If-Match: *"], 200), (['If-Match: "x"'], 412), ([f"If-Match: W/{tag}"], 412),
                ([f"If-Unmodified-Since: {before}"], 412), ([f"If-Unmodified-Since: {same}"], 200),
                ([f"If-Match: {tag}", f"If-Unmodified-Since: {before}"], 200),
                ([f"If-Match: {tag}", f"If-None-Match: {tag}"], 304), (['If-Match: "x"', f"If-None-Match: {tag}"], 412),
                (['If-Match: "x"', "Range: bytes=5000-"], 412), ([f"If-None-Match: {tag}", "Range: bytes=0-1"], 304)):
            with self.subTest(fields):
                answer = client.get("/small.txt", *fields)
                self.assertEqual(answer.status, status)
                self.assertEqual(answer.body, {200: self.files["small.txt"], 304: b""}.get(status, answer.body))
                if status == 304:
                    self.assertEqual((answer["ETag"], answer["Content-Type"]), (tag, None))
                self.assertEqual(client.get("/small.txt", *fields, method="HEAD").status, status)


class Connections(Case):
    def test_thousands_of_requests_on_one_connection(self):
        names = ["small.txt", "empty.txt", "one.css", "over.json", "page.html"]
        client = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        client.connect()
        connected = client.sock
        for i in range(3000):
            name = names[i % len(names)]
            client.request("GET", "/" + name)
            answer = client.getresponse()
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.read(), self.files[name])
        self.assertIs(client.sock, connected)
        client.close()

    def test_pipelined_requests_are_answered_in_order(self):
        client = self.connect()
        order = [random.Random(2).choice(["small.txt", "large.bin", "empty.txt", "over.json", "missing", "one.css"]) for _ in range(150)]
        sender = threading.Thread(target=client.send, args=("".join(request("/" + name) for name in order),))
        sender.start()
        for name in order:
            answer = client.answer()
            self.assertEqual(answer.status, 200 if name in self.files else 404)
            self.assertEqual(answer.body, self.files.get(name, answer.body))
        sender.join()
        # And with an end in between: what comes after it is not answered.
        client.send(request("/small.txt") + request("/one.css", "Connection: close") + request("/small.txt") * 50)
        self.assertEqual(client.answer().body, self.files["small.txt"])
        last = client.answer()
        self.assertEqual((last.body, last["Connection"]), (self.files["one.css"], "close"))
        client.assert_closed()

    def test_requests_in_pieces(self):
        text = request("/small.txt", "X-Filler: " + "x" * 20) + request("/one.css", "Content-Length: 3") + "abc" + request("/")
        expected = [self.files[name] for name in ("small.txt", "one.css", "index.html")]
        client = self.connect()
        for byte in text:
            client.send(byte)
        self.assertEqual([client.answer().body for _ in expected], expected)
        for cut in range(1, len(text), 3):
            client.send(text[:cut])
            client.send(text[cut:])
            self.assertEqual([client.answer().body for _ in expected], expected)
        # Heads that begin anywhere in the buffer, and reach over its end.
        text = "".join(request("/one.css", "X-Filler: " + "x" * (700 + i)) for i in range(60))
        client.send(text)
        for _ in range(60):
            self.assertEqual(client.answer().body, self.files["one.css"])

    def test_bodies_are_dropped(self):
        client = self.connect()
        body = "GET /evil HTTP/1.1\r\nHost: x\r\n\r\n"
        for method, status in (("GET", 200), ("POST", 405), ("BREW", 501), ("HEAD", 200)):
            for size in (1, len(body), 60_000):
                with self.subTest(f"{method} {size}"):
                    client.send(request("/small.txt", f"Content-Length: {size}", method=method) + (body * 3000)[:size])
                    self.assertEqual(client.answer(method == "HEAD").status, status)
        self.assertEqual(client.get("/one.css").body, self.files["one.css"])

    def test_the_client_decides_when_to_close(self):
        for fields, version, keeps in (([], "1.1", True), (["Connection: close"], "1.1", False), (["Connection: x, CLOSE"], "1.1", False),
                                       ([], "1.0", False), (["Connection: Keep-Alive"], "1.0", True),
                                       (["Connection: keep-alive", "Connection: close"], "1.1", False),
                                       (["Connection: close-not"], "1.1", True)):
            with self.subTest(f"{version} {fields}"), self.server.connect() as client:
                client.send(request("/small.txt", *fields, version=version))
                answer = client.answer()
                self.assertEqual(answer.body, self.files["small.txt"])
                self.assertEqual(answer["Connection"], {(True, "1.0"): "keep-alive", (True, "1.1"): None}.get((keeps, version), "close"))
                if keeps:
                    self.assertEqual(client.get("/one.css").body, self.files["one.css"])
                else:
                    client.assert_closed()

    def test_a_client_that_ends_its_stream_still_gets_its_answers(self):
        client = self.connect()
        client.send(request("/large.bin") + request("/small.txt"))
        client.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(client.answer().body, self.files["large.bin"])
        self.assertEqual(client.answer().body, self.files["small.txt"])
        client.assert_closed()

    def test_clients_that_disappear_leave_nothing_behind(self):
        server = self.start("--threads", "1")
        for i in range(40):
            client = server.connect()
            client.send([request("/large.bin") * 3, request("/small.txt")[:20], "", request("/large.bin"), request("/small.txt") * 20][i % 5])
            if i % 5 in (0, 3):
                client.socket.recv(1000 * i + 1)
            client.reset() if i % 2 else client.socket.close()
        server.wait_idle()
        with server.connect() as client:
            self.assertEqual(client.get("/large.bin").body, self.files["large.bin"])
        server.stop()

    def test_a_file_that_becomes_shorter_ends_the_connection(self):
        path = self.root / "shrinks"
        with open(path, "wb") as file:
            file.truncate(200_000_000)
        client = self.connect()
        client.send(request("/shrinks"))
        while b"\r\n\r\n" not in client.received:
            client.more()
        os.truncate(path, 1000)
        with self.assertRaises(Gone):
            while True:
                client.received = b""
                client.more()
        with self.server.connect() as client:
            self.assertEqual(client.get("/shrinks").body, b"\0" * 1000)

    def test_a_hundred_clients_at_once(self):
        def run(seed):
            numbers = random.Random(seed)
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(self.server.connect()) for _ in range(25)]
                for _ in range(20):
                    for client in clients:
                        client.name = numbers.choice(["small.txt", "over.json", "page.html", "piece.bin", "edge.png"])
                        client.send(request("/" + client.name))
                    for client in clients:
                        if client.answer().body != self.files[client.name]:
                            raise AssertionError(client.name)

        in_parallel(run, range(4))


class Errors(Case):
    def test_what_is_not_understood_ends_the_connection(self):
        for text, status in {
                "nonsense\r\n\r\n": 400, "GET /\r\n\r\n": 400, "GET / HTTP/1.1 \r\nHost: x\r\n\r\n": 400, "GET  / HTTP/1.1\r\n": 400,
                " GET / HTTP/1.1\r\nHost: x\r\n\r\n": 400, "GET / http/1.1\r\nHost: x\r\n\r\n": 400, "G(T / HTTP/1.1\r\nHost: x\r\n\r\n": 400,
                "GET /\x7f HTTP/1.1\r\nHost: x\r\n\r\n": 400, "GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n": 400,
                "GET / HTTP/1.1\nHost: x\n\n": 400, "GET / HTTP/1.1\r\nHost: x\n\r\n": 400, "GET / HTTP/1.1\rHost: x\r\n\r\n": 400,
                "GET / HTTP/1.1\r\n\r\n": 400, "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n": 400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n": 400,
                "GET / HTTP/1.1\r\nHost: x\r\nBad Name: x\r\n\r\n": 400, "GET / HTTP/1.1\r\nHost: x\r\nName : x\r\n\r\n": 400,
                "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n": 400, "GET / HTTP/1.1\r\nHost: x\r\nNo colon\r\n\r\n": 400,
                "GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n": 400, "GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n": 400,
                "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n": 400,
                "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n": 400, "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1,1\r\n\r\n": 400,
                "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
                "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
                "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": 411,
                "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n": 501,
                "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n": 413,
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n": 413,
                "GET / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n": 417,
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 505, "GET / HTTP/0.9\r\n\r\n": 505, "GET / HTTP/3.0\r\nHost: x\r\n\r\n": 505,
                "GET /" + "x" * 9000 + " HTTP/1.1\r\nHost: x\r\n\r\n": 414,
                "GET / HTTP/1.1\r\nHost: x\r\nA: " + "x" * 9000 + "\r\n\r\n": 431,
                "GET / HTTP/1.1\r\nHost: x\r\n" + "A: b\r\n" * 64 + "\r\n": 431}.items():
            with self.subTest(text[:60]), self.server.connect() as client:
                # What was sent with it, and is never read, does not take the answer away.
                client.send(text + request("/small.txt") * 2000)
                answer = client.answer()
                self.assertEqual((answer.status, answer["Connection"]), (status, "close"))
                client.assert_closed()

    def test_what_is_understood_and_not_done_keeps_it(self):
        client = self.connect()
        for method in ("POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"):
            answer = client.get("/small.txt", method=method)
            self.assertEqual((answer.status, answer["Allow"]), (405, "GET, HEAD"))
        for method in ("BREW", "get", "X-ODD!"):
            self.assertEqual(client.get("/small.txt", method=method).status, 501)
        missing = client.get("/missing")
        self.assertEqual((missing.status, missing.body), (404, b"404 Not Found\n"))
        self.assertEqual(client.get("/missing", method="HEAD")["Content-Length"], str(len(missing.body)))
        client.send("\r\n\r\n" + request("/one.css"))  # empty lines before a request mean nothing
        self.assertEqual(client.answer().body, self.files["one.css"])
        client.send(request("/one.css", "Expect: 100-continue", "Content-Length: 5"))
        answer = client.answer()
        self.assertEqual((answer.status, answer["Connection"]), (200, "close"))


class Limits(Case):
    def test_who_is_slow_with_a_request_is_told_and_dropped(self):
        server = self.start("--head-timeout", "300")
        text = request("/small.txt", "X: " + "x" * 4000)
        client = self.connect(server)
        ended = threading.Event()

        def trickle():
            with contextlib.suppress(OSError):
                for byte in text:
                    client.send(byte)
                    if ended.wait(0.05):
                        break

        thread = threading.Thread(target=trickle)
        thread.start()
        answer = client.answer()
        self.assertEqual((answer.status, answer["Connection"]), (408, "close"))
        client.assert_closed()
        ended.set()
        thread.join()
        # In the second of two requests, and in a body that is not wanted.
        client = self.connect(server)
        client.send(request("/small.txt") + "GET")
        self.assertEqual([client.answer().status for _ in range(2)], [200, 408])
        client.assert_closed()
        client = self.connect(server)
        client.send(request("/small.txt", "Content-Length: 10") + "12345")
        self.assertEqual(client.answer().status, 200)
        client.assert_closed()
        server.stop()

    def test_who_sends_nothing_is_dropped(self):
        server = self.start("--idle-timeout", "300")
        new, used = self.connect(server), self.connect(server)
        self.assertEqual(used.get("/small.txt").status, 200)
        new.assert_closed()
        used.assert_closed()
        server.stop()

    def test_who_does_not_read_is_dropped(self):
        server = self.start("--send-timeout", "300", "--threads", "1")
        with open(self.root / "huge", "wb") as file:
            file.truncate(1 << 30)
        deaf = [self.connect(server) for _ in range(5)]
        for client in deaf:
            client.send(request("/huge"))
        client = self.connect(server)
        self.assertEqual(client.get("/large.bin").body, self.files["large.bin"])
        self.assertEqual(client.get("/small.txt").body, self.files["small.txt"])
        client.socket.close()
        server.wait_idle()
        server.stop()

    def test_who_reads_slowly_is_served(self):
        server = self.start("--send-timeout", "2000")
        data = random.Random(3).randbytes(9_000_000)
        (self.root / "slow").write_bytes(data)
        client = Client(server.port, narrow=True)
        self.addCleanup(client.socket.close)
        client.send(request("/slow"))
        received = b""
        while len(received) < len(data):  # at most 2 MB/s, and the kernel holds 4 MB: longer than the time for sending
            piece = client.socket.recv(100_000)
            self.assertTrue(piece, f"dropped after {len(received)} bytes")
            received += piece
            time.sleep(0.05)
        while not received.endswith(data):
            received += client.socket.recv(100_000)
        client.socket.close()
        server.stop()

    def test_who_does_not_fit_waits(self):
        server = self.start("--connections", "4", "--threads", "1")
        inside = [self.connect(server) for _ in range(4)]
        for client in inside:
            self.assertEqual(client.get("/small.txt").status, 200)
        outside = [self.connect(server) for _ in range(3)]
        for client in outside:
            client.send(request("/one.css"))
        for client in inside * 3:
            self.assertEqual(client.get("/small.txt").status, 200)
        self.assertEqual(server.open("socket:"), 5, "four connections and the listener")
        for client, leaving in zip(outside, inside):
            leaving.socket.close()
            self.assertEqual(client.answer().body, self.files["one.css"])
        for client in inside + outside:
            client.socket.close()
        server.stop()

    def test_half_requests_take_nobodys_buffers(self):
        server = self.start("--connections", "64", "--threads", "1")
        for client in [self.connect(server) for _ in range(63)]:
            client.send("GET /small.txt HTT")
        client = self.connect(server)
        for _ in range(10):
            self.assertEqual(client.get("/small.txt").body, self.files["small.txt"])
        server.signal()
        server.wait_refusing()
        server.signal()
        server.end()


class Stop(Case):
    def test_what_is_under_way_is_finished(self):
        server = self.start("--grace", "60000")
        with open(self.root / "long", "wb") as file:
            file.truncate(100_000_000)
        reading, half, pipelined, idle = (self.connect(server) for _ in range(4))
        self.assertEqual(idle.get("/small.txt").status, 200)
        reading.send(request("/long"))
        reading.more()
        pipelined.send(request("/long") + request("/small.txt") * 3)
        pipelined.more()
        half.send(request("/small.txt")[:-5])
        wait_until(lambda: received_by(server, half), lambda: "the half request was not received")
        server.signal()
        server.wait_refusing()
        idle.assert_closed()
        half.send(request("/small.txt")[-5:])
        answer = half.answer()
        self.assertEqual((answer.body, answer["Connection"]), (self.files["small.txt"], "close"))
        self.assertEqual(len(reading.answer().body), 100_000_000)
        answers = [pipelined.answer() for _ in range(4)]
        self.assertEqual([len(answer.body) for answer in answers], [100_000_000, 1000, 1000, 1000])
        self.assertEqual([answer["Connection"] for answer in answers][1:], [None, None, "close"])
        for client in (half, reading, pipelined):
            client.assert_closed()
        self.assertEqual(server.end(), 7)

    def test_under_load_no_answer_is_cut(self):
        server = self.start()
        answered, enough = [0] * 8, threading.Event()

        def run(number):
            numbers = random.Random(number)
            while True:
                try:
                    with server.connect() as client:
                        for _ in range(numbers.randrange(1, 30)):
                            names = numbers.choices(["small.txt", "over.json", "piece.bin", "one.css"], k=numbers.randrange(1, 4))
                            client.send("".join(request("/" + name) for name in names))
                            for name in names:
                                if client.answer().body != self.files[name]:
                                    raise AssertionError(name)
                                answered[number] += 1
                            if sum(answered) > 3000:
                                enough.set()
                except Gone as end:
                    if end.received:
                        raise
                except ConnectionRefusedError:
                    return
                except (ConnectionResetError, BrokenPipeError):
                    pass  # connected and not accepted any more, or closed while idle: no answer has begun

        def stop():
            enough.wait(PATIENCE)
            server.signal()

        stopper = threading.Thread(target=stop)
        stopper.start()
        in_parallel(run, range(8))
        stopper.join()
        self.assertGreater(sum(answered), 3000)
        self.assertGreaterEqual(server.end(), sum(answered))

    def stop_with_a_deaf_client(self, server):
        with open(self.root / "huge", "wb") as file:
            file.truncate(1 << 30)
        client = self.connect(server)
        client.send(request("/huge"))
        client.more()
        server.signal()
        server.wait_refusing()
        return client

    def test_the_grace_ends(self):
        server = self.start("--grace", "300", "--send-timeout", "3600000")
        client = self.stop_with_a_deaf_client(server)
        server.end()
        with self.assertRaises((Gone, ConnectionError)):
            client.answer()

    def test_a_second_signal_ends_it(self):
        server = self.start("--grace", "3600000", "--send-timeout", "3600000")
        self.stop_with_a_deaf_client(server)
        self.assertIsNone(server.process.poll())
        server.signal()
        server.end()

    def test_right_after_the_start(self):
        for _ in range(5):
            self.assertEqual(self.start().stop(), 0)


def received_by(server, client):
    """The server has taken all that this client has sent: nothing of it is unacknowledged or unread."""
    ours, theirs = client.socket.getsockname()[1], server.port
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{theirs:04X}") and fields[2].endswith(f":{ours:04X}"):
            return fields[4].endswith(":00000000")
    return False


def in_parallel(run, arguments):
    failures = []

    def guarded(argument):
        try:
            run(argument)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    if len(sys.argv) > 1 and sys.argv[1] == "--walk":
        OPTIONS.append(sys.argv.pop(1))
    unittest.main(verbosity=2)
