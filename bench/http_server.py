#!/usr/bin/python3
"""c_examples/http_server beside nginx, on the same files, driven by wrk.

    http_server.py [--build DIR] [--rounds N] [--seconds S] [--only TEXT] [--nice N] [--out FILE]

The servers of a row take turns, A B C A B C ..., each turn a wrk of its own. All servers run all the time, one process with one
thread for the work each, pinned to the first core the process may use; wrk is pinned to the second. A figure is the median of its
turns; a ratio is the median of the ratios to nginx's turn of the same round. Beside the requests per second stands the server's
own processor time per request, which another load on the machine disturbs less. Every server's files are compared with what
is on the disk before anything is measured. With --out the table goes into FILE between its two marks.

Exit status 77: wrk or nginx is not installed."""
import argparse
import http.client
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROWS = [("1 KiB", 1024, 64), ("1 KiB", 1024, 1), ("1 KiB", 1024, 512), ("16 KiB", 16384, 64), ("256 KiB", 262144, 64), ("4 MiB", 4 << 20, 16)]
NGINX, CACHED, RING, EPOLL = "nginx", "nginx, open_file_cache", "Upcall, io_uring", "Upcall, epoll"
TICKS = os.sysconf("SC_CLK_TCK")
CONFIGURATION = """
daemon off; worker_processes 1; user root; pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; default_type application/octet-stream;
    client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
    uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e; {more}
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}"""


class Server:
    def __init__(self, name, command, core, port=None, environment=None):
        self.name = name
        self.process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, text=True, env=environment)
        if port is None:
            port = int(re.match(r"listening on \S+ port (\d+)", self.process.stdout.readline())[1])
        self.port = port
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        sys.exit(f"{name} does not listen")

    def processor_s(self):
        """Of the process and its children; nginx's work is done by one of these."""
        total, pids = 0, [self.process.pid]
        while pids:
            pid = pids.pop()
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
            pids += [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return total / TICKS

    def check(self, files):
        for name, data in files.items():
            client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            client.request("GET", "/" + name)
            if client.getresponse().read() != data:
                sys.exit(f"{self.name} serves {name} wrong")
            client.close()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def measure(server, name, connections, seconds, core):
    before = server.processor_s()
    output = subprocess.run(["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s",
                             f"http://127.0.0.1:{server.port}/{name}"], check=True, stdout=subprocess.PIPE, text=True).stdout
    used = server.processor_s() - before
    if re.search("Non-2xx|Socket errors", output):
        sys.exit(f"{server.name}: {output}")
    requests = int(re.search(r"(\d+) requests in", output)[1])
    return float(re.search(r"Requests/sec: +([0-9.]+)", output)[1]), used / requests * 1e6


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_servers(program, directory, root, core):
    for name, more in ((NGINX, ""), (CACHED, "open_file_cache max=1000; open_file_cache_valid 60s;")):
        port, folder = free_port(), directory / name.replace(", ", "_")
        folder.mkdir()
        (folder / "nginx.conf").write_text(CONFIGURATION.format(directory=folder, port=port, root=root, more=more))
        yield Server(name, ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")], core, port)
    for name, backend in ((RING, "io_uring"), (EPOLL, "epoll")):
        yield Server(name, [program, "--threads", "1", root], core, environment=os.environ | {"UPCALL_BACKEND": backend})


def run_rows(servers, options, core):
    """Yields a row's label and, per server, (requests/s, µs of processor per request, ratio of each to nginx)."""
    for label, size, connections in ROWS:
        label = f"{label}, {connections} connection{'s' * (connections > 1)}"
        if options.only not in label:
            continue
        turns = {server.name: [] for server in servers}
        for server in servers:
            measure(server, f"{size}.bin", connections, 1, core)  # warms up
        for _ in range(options.rounds):
            for server in servers:
                turns[server.name].append(measure(server, f"{size}.bin", connections, options.seconds, core))
        row = {}
        for name, results in turns.items():
            rate, used = (statistics.median(values) for values in zip(*results))
            faster = statistics.median(mine[0] / theirs[0] for mine, theirs in zip(results, turns[NGINX]))
            dearer = statistics.median(mine[1] / max(theirs[1], 1e-9) for mine, theirs in zip(results, turns[NGINX]))
            row[name] = rate, used, faster, dearer
            print(f"{label:28} {name:24} {rate:10.0f}/s {used:8.1f} us  x {faster:.2f} speed, x {dearer:.2f} processor", flush=True)
        yield label, row


def table(rows):
    names = [NGINX, CACHED, RING, EPOLL]
    lines = ["| requests/s (× nginx), processor time per request | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for label, row in rows:
        cells = [f"{row[n][0]:,.0f}" + (f" (× {row[n][2]:.2f})" if n != NGINX else "") + f", {row[n][1]:.1f} µs" for n in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=pathlib.Path(__file__).parent.parent / "build/release", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--nice", type=int, default=0, help="of servers and load; below 0 on a machine with other work")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    for tool in ("wrk", "nginx", "taskset"):
        if shutil.which(tool) is None:
            print(f"{tool} is not installed", file=sys.stderr)
            return 77
    os.nice(options.nice)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the server, one for the load")
    with tempfile.TemporaryDirectory(prefix="upcall-http.") as directory:
        directory = pathlib.Path(directory)
        directory.chmod(0o755)
        root = directory / "root"
        root.mkdir()
        files = {f"{size}.bin": random.Random(size).randbytes(size) for _, size, _ in ROWS}
        for name, data in files.items():
            (root / name).write_bytes(data)
            os.utime(root / name, (1_000_000_000,) * 2)
        servers = []
        try:
            for server in start_servers(options.build / "c_examples/http_server", directory, root, cores[0]):
                servers.append(server)
                server.check(files)
            load_before = os.getloadavg()[0]
            rows = list(run_rows(servers, options, cores[1]))
            load_after = os.getloadavg()[0]
        finally:
            for server in servers:
                server.stop()
    version = subprocess.run(["nginx", "-v"], stderr=subprocess.PIPE, text=True, check=True).stderr.strip().rpartition("/")[2]
    text = (f"nginx {version}, {options.rounds} rounds of {options.seconds} s, Linux {os.uname().release.split('-')[0]}; load average {load_before:.1f} "
            f"before and {load_after:.1f} after"
            f"{f', servers and wrk at nice {options.nice}' if options.nice else ''}.\n\n{table(rows)}")
    print(text)
    if options.out:
        begin, end = "<!-- bench/http_server.py writes this -->", "<!-- to here -->"
        page = options.out.read_text(encoding="utf-8")
        before, _, rest = page.partition(begin)
        options.out.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
