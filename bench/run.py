#!/usr/bin/python3
"""Runs the contestants in turns and compares the medians.

    run.py [--build DIR] [--only GROUP[,GROUP...]] [--quick] [--rounds N] [--out DIR] [--list]

The contestants of a row take turns, A B C A B C ..., each turn a process of its own, so that what drifts drifts for all. What is
printed for a row is the median of the turns and their spread (lowest to highest); a ratio is the median of the ratios of turns
that ran side by side. With --out the results go to DIR/results.json (rows that ran replace those of the same name, others stay),
the pictures beside it, and the tables into DIR/../performance.md between their two marks."""
import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

RING, EPOLL = "Upcall, io_uring", "Upcall, epoll"
UPCALL = {RING: "io_uring", EPOLL: "epoll"}
OTHERS = ["libuv", "libev", "libevent", "asio-epoll", "asio-io_uring"]  # the libraries that Upcall stands beside
SERVERS = ["liburing", "epoll", *OTHERS, RING, EPOLL]
SIZES = {64: "64 B", 1024: "1 KiB", 16384: "16 KiB"}


class Row:
    """One comparison: these contestants, this workload, these parameters."""

    def __init__(self, group, workload, contestants, metric="ns", unit="ns", rounds=5, quick=False, cores="one", label="", **parameters):
        self.group, self.workload, self.contestants, self.metric, self.unit = group, workload, contestants, metric, unit
        self.rounds, self.quick, self.cores, self.label, self.parameters = rounds, quick, cores, label, parameters
        self.name = " ".join([group, *(f"{k}={v}" for k, v in parameters.items() if k != "seconds")])


def rows():
    """Contestants are names, or (name, {parameters}, label)."""
    forms = [("liburing", {}, "liburing"), ("liburing", {"form": "again"}, "liburing, again")]
    for ours in UPCALL:
        forms += [(ours, {"form": form}, f"{ours}, {form}") for form in ("array", "reap", "fresh", "again")]
    for batch in (1, 4, 16, 64, 256, 1024):
        yield Row("nop", "nop", forms, quick=batch in (1, 64), batch=batch, seconds=0.12)
    for direct in (0, 1):
        for depth in (1, 4, 16, 64, 256):
            who = ["liburing", RING, EPOLL, "libuv", ("libuv", {"cpu": -1}, "libuv, two cores"), "asio-io_uring"]
            if depth == 1:
                who.append("blocking")
            if depth in (1, 64):
                who.append("fio")
            yield Row("read", "read", who, quick=depth == 64, direct=direct, depth=depth, seconds=0.2)
    for message in SIZES:
        for connections in (1, 64, 1000, 8000):
            yield Row("lockstep", "lockstep", SERVERS, quick=(connections, message) == (64, 64), rounds=5 if message == 64 and connections < 8000 else 3,
                      connections=connections, message=message, seconds=0.2)
    for family in ("unix", "udp"):
        yield Row("lockstep", "lockstep", SERVERS, family=family, connections=64, message=64, seconds=0.2)
    for connections in (1, 64, 1000):
        yield Row("system-calls", "lockstep", SERVERS, "syscalls", "calls", 1, quick=connections == 64, syscalls=1, connections=connections,
                  message=64)
    for message in SIZES:
        for connections in (1, 64, 1000, 8000):
            who = list(SERVERS)
            if connections == 1:
                who.append((RING, {"spin": 50000}, f"{RING}, spin_ns"))
                who.append((EPOLL, {"spin": 50000}, f"{EPOLL}, spin_ns"))
            yield Row("echo", "echo", who, "per_second", "per second", 5 if (connections, message) in ((1, 64), (64, 64)) else 3,
                      quick=(connections, message) == (64, 64), cores="two", connections=connections, message=message, seconds=0.25)
    yield Row("connect", "connect", SERVERS, quick=True, seconds=0.25)
    files = ["liburing", "blocking", "libuv", RING, EPOLL]
    for workload, depth in (("stat", 64), ("small", 64), ("append", 8)):
        yield Row(workload, workload, files, quick=True, cores="two", depth=depth, seconds=0.4)
    copiers = [("blocking", {}, "cp"), "liburing", "libuv", RING, EPOLL]
    copiers += [(ours, {"workload": "copy-range"}, f"{ours}, copy_range") for ours in UPCALL]
    yield Row("copy", "copy", copiers, "copy_ns", "ns", 3, cores="two", megabytes=512, count=1)
    timers = ["libuv", "libev", "libevent", "asio-epoll", "liburing", RING, EPOLL]
    yield Row("timers", "timers", timers, "arm_ns", "ns", 3, timers=1000000)
    for threads in (1, 2, 4):
        yield Row("posts", "posts", SERVERS, rounds=3, cores="two", quick=threads == 2, threads=threads, posts=500000)
    yield Row("memory-connection", "idle", SERVERS, "bytes", "bytes", 1, cores="two", connections=10000, message=64)
    yield Row("memory-loop", "loops", SERVERS, "bytes", "bytes", 1, loops=32)
    plain_and_limited = [who for ours in UPCALL for who in ((ours, {}, ours), (ours, {"deadline": 1}, f"{ours}, deadlines"))]
    raw = [("liburing", {}, "liburing"), ("liburing", {"deadline": 1}, "liburing, deadlines")]
    yield Row("deadlines", "nop", raw + plain_and_limited, work="nop", batch=64, seconds=0.2)
    yield Row("deadlines", "read", raw + plain_and_limited, work="read", depth=64, seconds=0.3)
    yield Row("deadlines", "lockstep", plain_and_limited, work="echo", connections=64, message=64, seconds=0.3)


# The figures to reach. Each says of which rows, whose speed, against whom, and at least what ratio of speeds.
def targets():
    raw, forms = "liburing", ((1, 0.97, 0.95), (16, 0.91, 0.87), (64, 0.90, 0.87), (256, 0.88, 0.84))
    for batch, reused, _ in forms:
        yield f"NOP, batch {batch}, array reused", f"nop batch={batch}", f"{RING}, array", raw, reused
    for batch, _, fresh in forms:
        yield f"NOP, batch {batch}, built fresh", f"nop batch={batch}", f"{RING}, fresh", raw, fresh
        yield f"NOP, batch {batch}, again in the callback", f"nop batch={batch}", f"{RING}, again", "liburing, again", fresh
    cached, direct = "read direct=0 depth=64", "read direct=1 depth=64"
    for ours, of_raw, one, two in ((RING, 0.97, 4.0, 1.7), (EPOLL, 0.90, 3.5, 1.6)):
        yield "cached 4 KiB reads, depth 64", cached, ours, raw, of_raw
        yield "cached 4 KiB reads, depth 64, one core each", cached, ours, ["libuv"], one
        yield "cached 4 KiB reads, depth 64, libuv on two cores", cached, ours, ["libuv, two cores"], two
    yield "cached 4 KiB reads, depth 64, against fio", cached, RING, "fio", None
    yield "O_DIRECT 4 KiB reads, depth 64", direct, RING, raw, 0.98
    yield "O_DIRECT 4 KiB reads, depth 64, one core each", direct, RING, ["libuv"], 3.0
    yield "O_DIRECT 4 KiB reads, depth 64, one core each", direct, EPOLL, ["libuv"], 1.0
    for connections in (64, 1000, 8000):
        name, what = f"lockstep connections={connections} message=64", f"echo 64 B, {connections} connections, lockstep"
        yield what, name, RING, raw, 0.98
        yield what, name, RING, "epoll", 1 / 0.95
        yield what, name, EPOLL, "epoll", 0.97
        yield what, name, RING, OTHERS, 1.0
        yield what, name, EPOLL, OTHERS, 1.0
    for message, size in SIZES.items():
        for connections in (64, 1000, 8000):
            name, what = f"echo connections={connections} message={message}", f"echo {size}, {connections} connections, two cores"
            yield what, name, RING, raw, 0.97
            yield what, name, EPOLL, "epoll", 0.97
            yield what, name, RING, OTHERS, 1.0
            yield what, name, EPOLL, OTHERS, 1.0
    one = "echo connections=1 message=64"
    for ours, limit in ((RING, raw), (EPOLL, "epoll")):
        yield "echo 64 B, 1 connection, two cores", one, ours, limit, 0.98
        yield "echo 64 B, 1 connection, two cores", one, ours, OTHERS, 1.0
        yield "echo 64 B, 1 connection, spin_ns 50 us", one, f"{ours}, spin_ns", OTHERS, 2.5
    for work, parameters in (("nop", "batch=64"), ("read", "depth=64"), ("echo", "connections=64 message=64")):
        for ours in UPCALL:
            yield f"a deadline on every operation ({work})", f"deadlines work={work} {parameters}", f"{ours}, deadlines", ours, 0.95
    for what, row in (("statx", "stat depth=64"), ("small files", "small depth=64"), ("append and fdatasync", "append depth=8")):
        yield what, row, RING, raw, 0.95
        yield what, row, RING, ["libuv"], 1.5
        yield what, row, EPOLL, ["libuv"], 1.5
    yield "connect, accept, close", "connect", RING, raw, 0.97
    yield "connect, accept, close", "connect", EPOLL, "epoll", 0.97
    yield "connect, accept, close", "connect", RING, OTHERS, 1.1
    yield "connect, accept, close", "connect", EPOLL, OTHERS, 1.1
    for phase, metric in (("armed", "arm_ns"), ("cancelled", "cancel_ns"), ("fired", "fire_ns")):
        for ours in UPCALL:
            yield f"timers, {phase}", "timers timers=1000000", ours, ["libuv", "libev"], 2.0, metric
    for threads in (1, 2, 4):
        for ours in UPCALL:
            yield f"posts from {threads} thread{'s' * (threads > 1)}", f"posts threads={threads} posts=500000", ours, ["libuv"], 2.0
    for ours in UPCALL:
        yield "copy of a large file", "copy megabytes=512 count=1", f"{ours}, copy_range", "cp", None
        yield "memory of a timer in flight", "timers timers=1000000", ours, ["libuv", "libev", "libevent", "asio-epoll"], 1.0, "bytes"
        yield "memory of an idle connection", "memory-connection connections=10000 message=64", ours, OTHERS, 1.0
        yield "memory of an idle loop", "memory-loop loops=32", ours, OTHERS, 1.0


def label_of(who):
    return who[2] if isinstance(who, tuple) else who


def check_targets():
    known = {row.name: {label_of(who) for who in row.contestants} for row in rows()}
    for what, name, ours, against, *_ in targets():
        for label in [ours, *(against if isinstance(against, list) else [against])]:
            if label not in known.get(name, ()) and not (isinstance(against, list) and len(against) > 1):
                sys.exit(f"run.py: {what}: no {label} in the row '{name}'")


class Bench:
    def __init__(self, options):
        self.options = options
        self.programs = Path(options.build) / "bench" / "contestants"
        self.data = Path(options.data or Path(options.build) / "bench" / "data").resolve()
        self.data.mkdir(parents=True, exist_ok=True)
        cores = sorted(os.sched_getaffinity(0))
        self.cpu, self.others = cores[0], cores[1 % len(cores)]
        self.missing, self.versions = {}, {}

    def command(self, row, who):
        name, extra, _ = who
        if name == "fio":
            return self.fio(row), {}
        environment = {"UPCALL_BACKEND": UPCALL[name]} if name in UPCALL else {}
        program = self.programs / ("upcall" if name in UPCALL else name)
        parameters = {"cpu": -1 if row.workload in ("stat", "small", "append", "copy") else self.cpu, "others": self.others,
                      "dir": self.data, **row.parameters, **extra}
        if self.options.quick and "seconds" in parameters:
            parameters["seconds"] = min(parameters["seconds"], 0.15)
        return [str(program), parameters.pop("workload", row.workload), *(f"{k}={v}" for k, v in parameters.items())], environment

    def fio(self, row):
        p = row.parameters
        return ["fio", "--name=read", f"--filename={self.data}/blocks.65536", "--readonly", "--allow_file_create=0", "--rw=randread",
                "--bs=4k", f"--iodepth={p['depth']}", "--ioengine=io_uring", "--nonvectored=1", "--thread", f"--direct={p['direct']}",
                f"--runtime={int(p['seconds'] * 1000)}ms", "--ramp_time=100ms", "--time_based", "--norandommap", "--gtod_reduce=1",
                "--invalidate=0", f"--iodepth_batch_submit={p['depth']}", "--iodepth_batch_complete_min=1",
                f"--iodepth_batch_complete_max={p['depth']}", f"--cpus_allowed={self.cpu}", "--output-format=json"]

    def turn(self, row, who):
        """One sample, or None when this contestant cannot."""
        label = who[2]
        if label in self.missing.get(row.workload, {}):
            return None
        command, environment = self.command(row, who)
        reason = None
        if not (shutil.which(command[0]) if command[0] == "fio" else Path(command[0]).exists()):
            reason = "not installed"
        else:
            done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
            if done.returncode == 77:
                reason = done.stderr.strip()
            elif done.returncode != 0:
                if "no such workload" in done.stderr:
                    reason = "has no such thing"
                else:
                    sys.exit(f"{' '.join(command)}\n{done.stderr}")
        if reason:
            if reason != "has no such thing":
                print(f"    {label}: {reason}")
            self.missing.setdefault(row.workload, {})[label] = reason
            return None
        if command[0] == "fio":
            report = json.loads(done.stdout[done.stdout.index("{"):])
            self.versions["fio"] = report["fio version"].removeprefix("fio-")
            read = report["jobs"][0]["read"]
            return {"ns": 1e9 / read["iops"], "ops": read["total_ios"]}
        sample = json.loads(done.stdout.splitlines()[-1])
        version = sample.pop("version")
        if re.fullmatch(r"\d{6}", version):  # Asio's
            version = f"{int(version) // 100000}.{int(version) // 100 % 1000}.{int(version) % 100}"
        if version[0].isdigit():
            self.versions["Upcall" if who[0] in UPCALL else who[0]] = version
        sample.pop("workload"), sample.pop("contestant")
        return sample

    def run(self, row):
        contestants = [who if isinstance(who, tuple) else (who, {}, who) for who in row.contestants]
        samples = {who[2]: [] for who in contestants}
        rounds = self.options.rounds or (min(row.rounds, 3) if self.options.quick else row.rounds)
        for _ in range(rounds):
            for who in contestants:
                sample = self.turn(row, who)
                if sample:
                    samples[who[2]].append(sample)
        return {label: all for label, all in samples.items() if all}


def values(result, label, metric):
    return [sample[metric] for sample in result["samples"].get(label, []) if metric in sample]


def slower_is_more(metric):
    return metric != "per_second"


def ratio(result, ours, against, metric):
    """How many times as fast (or as small): the median of the turns' ratios, and their spread."""
    a, b = values(result, ours, metric), values(result, against, metric)
    each = sorted((y / x if slower_is_more(metric) else x / y) for x, y in zip(a, b) if x > 0 and y > 0)
    return (statistics.median(each), each[0], each[-1]) if each else None


def best(result, names, metric):
    """Of several peers the one with the best median."""
    known = [(statistics.median(values(result, n, metric)), n) for n in names if values(result, n, metric)]
    return (min if slower_is_more(metric) else max)(known)[1] if known else None


def number(x):
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}" if abs(x) < 1 else f"{x:.1f}" if abs(x) < 100 else f"{x:.0f}"


def row_table(result, metric, unit):
    """name, median, lowest, highest, of the best peer, of the raw limit; and what else is worth a column."""
    limits = [n for n in ("liburing", "epoll", "blocking", "cp") if values(result, n, metric)]
    peer = best(result, [n for n in result["samples"] if n.split(",")[0] in OTHERS], metric)
    limit = best(result, limits, metric)
    lines = []
    for label in result["samples"]:
        v = values(result, label, metric)
        if not v:
            continue
        of = [ratio(result, label, other, metric) if other and other != label else None for other in (peer, limit)]
        extra = {}
        for name in ("server_cpu_ns", "load_cpu", "server_cpu", "p50_ns", "p99_ns", "p999_ns", "cpu_ns"):
            more = values(result, label, name)
            if more:
                extra[name] = statistics.median(more)
        lines.append((label, statistics.median(v), min(v), max(v), of, extra))
    return peer, limit, lines


def print_row(result):
    for metric, unit in result["metrics"]:
        peer, limit, lines = row_table(result, metric, unit)
        print(f"\n{result['name']}  [{metric}, {unit}]  cores: {result['cores']}")
        print(f"  {'':28} {'median':>10}  {'spread':^21} {'of ' + (peer or '-'):>16} {'of ' + (limit or '-'):>12}")
        for label, median, low, high, of, extra in lines:
            ratios = [f"{r[0]:.2f}" if r else "-" for r in of]
            more = ""
            if "load_cpu" in extra:
                more = f"  server {extra['server_cpu_ns']:.0f} ns, load {100 * extra['load_cpu']:.0f} %{'*' if extra['load_cpu'] > 0.9 else ''}"
            print(f"  {label:28} {number(median):>10}  {number(low):>9} - {number(high):<9} {ratios[0]:>16} {ratios[1]:>12}{more}")


def target_lines(results):
    for target in targets():
        what, name, ours, against, wanted = target[:5]
        result = results.get(name)
        if not result:
            continue
        metric = target[5] if len(target) > 5 else result["metrics"][0][0]
        other = best(result, against, metric) if isinstance(against, list) else against
        found = ratio(result, ours, other, metric) if other else None
        if found:
            yield what, ours, other, wanted, found


PICTURES = {"nop": "NOP by batch", "read": "4 KiB random reads by depth", "lockstep": "Echo in lockstep by connections",
            "echo": "Echo on two cores by connections", "latency": "Echo: latency percentiles", "batching": "Batching: theory and measurement"}


def write_documents(results, batching, machine, directory):
    whole = {"machine": machine, "batching": batching, "rows": list(results.values())}
    (directory / "results.json").write_text(json.dumps(whole, indent=1) + "\n")
    text = [f"Measured on {machine['date']}: {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}. "
            f"Versions: {', '.join(f'{k} {v}' for k, v in sorted(machine['versions'].items()))}.", ""]
    lines = list(target_lines(results))
    if lines:
        text += ["### Figures to reach", "",
                 "Ratios of speeds (for memory: of sizes), the median and the spread of the turns; above 1 Upcall is the faster, or the smaller.",
                 "", "| work | Upcall on | against | to reach | reached | spread |", "| --- | --- | --- | --- | --- | --- |"]
        for what, ours, other, wanted, found in lines:
            reached = f"{found[0]:.2f}"
            if wanted and found[0] < wanted:
                reached = f"**{reached}**"
            backend = re.sub(r"^Upcall, (io_uring|epoll).*", r"\1", ours)
            text.append(f"| {what} | {backend} | {other} | {f'{wanted:.2f}' if wanted else '-'} | {reached} | {found[1]:.2f} - {found[2]:.2f} |")
        text += ["", "In bold: not reached.", ""]
    if batching:
        text += [f"Batching: t_s {batching['t_s']:.0f} ns, t_k {batching['t_k']:.0f} ns, t_r {batching['t_r']:.1f} ns; io_uring_enter "
                 f"{batching['t_enter']:.0f} ns, an entry {batching['t_entry']:.1f} ns.", ""]
        text += [f"- {curve['title']}: B* = {curve['break_even']:.2f}" for curve in batching["curves"]] + [""]
    for name, title in PICTURES.items():
        if (directory / f"{name}.svg").exists():
            text += [f"![{title}]({directory.name}/{name}.svg)", ""]
    text += ["### All rows", ""]
    for result in results.values():
        for metric, unit in result["metrics"]:
            peer, limit, table = row_table(result, metric, unit)
            echo = any("load_cpu" in line[5] for line in table)
            head = ["", f"median, {unit}", "spread", f"of {peer or 'a library'}", f"of {limit or 'the limit'}"]
            if echo:
                head += ["server's CPU per message, ns", "load's CPU", "p50, us", "p99, us", "p99.9, us"]
            text += [f"<details><summary>{result['name']}{'' if len(result['metrics']) == 1 else ': ' + metric}</summary>", "",
                     "| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
            for label, median, low, high, of, extra in table:
                cells = [label, number(median), f"{number(low)} - {number(high)}", *(f"{r[0]:.2f}" if r else "-" for r in of)]
                if echo:
                    cells += [number(extra["server_cpu_ns"]), f"{100 * extra['load_cpu']:.0f} %{' (!)' if extra['load_cpu'] > 0.9 else ''}",
                              *(f"{extra[p] / 1000:.1f}" for p in ("p50_ns", "p99_ns", "p999_ns"))]
                text.append("| " + " | ".join(cells) + " |")
            text += ["", "</details>", ""]
    document = directory.parent / "performance.md"
    begin, end = "<!-- figures: begin -->", "<!-- figures: end -->"
    if document.exists() and begin in document.read_text():
        old = document.read_text()
        document.write_text(old[:old.index(begin) + len(begin)] + "\n\n" + "\n".join(text).strip() + "\n\n" + old[old.index(end):])


# ---- Pictures ----

def draw(results, batching, directory):
    try:
        import matplotlib
    except ImportError:
        print("no pictures: matplotlib is not installed (python3-matplotlib)")
        return
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "upcall", "svg.fonttype": "none", "font.size": 9, "axes.grid": True,
                                "grid.alpha": 0.3, "lines.markersize": 4})
    import matplotlib.pyplot as plt
    colours = {RING: "C3", EPOLL: "C1", "liburing": "black", "epoll": "dimgray", "libuv": "C0", "libev": "C2", "libevent": "C4",
               "asio-epoll": "C5", "asio-io_uring": "C6", "blocking": "C7", "fio": "C8", "libuv, two cores": "C9"}

    def style(label):
        ours = label.startswith("Upcall")
        base = label if label in colours else ", ".join(label.split(", ")[:2]) if ours else label.split(",")[0]
        dash = {"again": ":", "fresh": "--", "reap": "-."}.get(label.split(", ")[-1], "-")
        return {"color": colours.get(base, "C7"), "linestyle": dash, "marker": "o" if ours else ".", "linewidth": 2 if ours else 1}

    def save(figure, name):
        figure.tight_layout()
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)

    def logarithmic(axes, name, ticks):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel(name)

    def curves(axes, chosen, axis, metric, scale=lambda y: y):
        lines = {}
        for result in chosen:
            for label in result["samples"]:
                v = values(result, label, metric)
                if v:
                    lines.setdefault(label, []).append((result["parameters"][axis], scale(statistics.median(v))))
        for label, points in lines.items():
            points.sort()
            axes.plot(*zip(*points), label=label, **style(label))
        logarithmic(axes, axis, sorted({x for points in lines.values() for x, _ in points}))

    def of(group, **parameters):
        return [r for r in results.values() if r["group"] == group and all(r["parameters"].get(k) == v for k, v in parameters.items())]

    if of("nop"):
        figure, axes = plt.subplots(figsize=(8, 5))
        curves(axes, of("nop"), "batch", "ns")
        axes.set_ylabel("ns per NOP")
        axes.set_yscale("log")
        axes.legend(fontsize=7, ncol=2)
        save(figure, "nop")
    if of("read"):
        figure, both = plt.subplots(1, 2, figsize=(10, 4.2))
        for axes, direct, title in zip(both, (0, 1), ("cached", "O_DIRECT")):
            curves(axes, of("read", direct=direct), "depth", "ns", lambda ns: 1e6 / ns)
            axes.set_title(f"4 KiB random reads, {title}")
            axes.set_ylabel("thousand reads per second")
            axes.set_ylim(bottom=0)
        both[0].legend(fontsize=7)
        save(figure, "read")
    for group, metric, unit, scale in (("lockstep", "ns", "ns per message (server's part)", lambda y: y),
                                       ("echo", "per_second", "thousand messages per second", lambda y: y / 1000)):
        if of(group):
            figure, all_axes = plt.subplots(1, 3, figsize=(13, 4.2))
            for axes, (message, size) in zip(all_axes, SIZES.items()):
                curves(axes, [r for r in of(group, message=message) if "family" not in r["parameters"]], "connections", metric, scale)
                axes.set_title(f"TCP echo, {size}")
                axes.set_ylabel(unit)
                axes.set_ylim(bottom=0)
            all_axes[0].legend(fontsize=6.5)
            save(figure, group)
    latency = of("echo", connections=64, message=64)
    if latency:
        figure, axes = plt.subplots(figsize=(8, 4.2))
        names = ("p50_ns", "p90_ns", "p99_ns", "p999_ns")
        for label in latency[0]["samples"]:
            axes.plot(["50 %", "90 %", "99 %", "99.9 %"], [statistics.median(values(latency[0], label, n)) / 1000 for n in names],
                      label=label, **style(label))
        axes.set_yscale("log")
        axes.set_ylabel("us from send to answer")
        axes.set_title("TCP echo, 64 B, 64 connections: latency percentiles")
        axes.legend(fontsize=7)
        save(figure, "latency")
    if batching:
        figure, both = plt.subplots(1, 2, figsize=(11, 4.2))
        for axes, curve in zip(both, batching["curves"]):
            sizes = [p["batch"] for p in curve["points"]]
            for name, line in curve["lines"].items():
                axes.plot(sizes, line, "--", label=name)
            for name in curve["points"][0]:
                if name != "batch":
                    axes.plot(sizes, [p[name] for p in curve["points"]], marker="o", label=name)
            if curve.get("break_even"):
                axes.axvline(curve["break_even"], color="gray", linestyle=":", label=f"B* = {curve['break_even']:.2f}")
            logarithmic(axes, "batch", sizes[::2])
            axes.set_yscale("log")
            axes.set_ylabel("ns per operation")
            axes.set_title(curve["title"], fontsize=9)
            axes.legend(fontsize=7)
        save(figure, "batching")


def machine(bench):
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {"date": time.strftime("%Y-%m-%d"), "kernel": platform.release().split("-")[0], "cpu": cpu.group(1) if cpu else platform.machine(),
            "cores": len(os.sched_getaffinity(0)), "versions": bench.versions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/release", help="the build's folder")
    parser.add_argument("--only", default="", help="groups of rows: nop,read,lockstep,... (see --list)")
    parser.add_argument("--quick", action="store_true", help="few rows, short turns: to see that all works, not for figures")
    parser.add_argument("--rounds", type=int, help="turns of each contestant, instead of 1, 3 or 5 as the row says")
    parser.add_argument("--out", help="where results.json and the pictures go")
    parser.add_argument("--data", help="where the files to read are made: on the disk to be measured")
    parser.add_argument("--list", action="store_true", help="the rows, and how many turns they take")
    options = parser.parse_args()
    only = options.only.replace(",", " ").split()
    groups = [*dict.fromkeys(row.group for row in rows()), "batching"]
    if set(only) - set(groups):
        sys.exit(f"--only: {', '.join(sorted(set(only) - set(groups)))}? There are: {', '.join(groups)}")
    chosen = [row for row in rows() if (not only or row.group in only) and (row.quick or only or not options.quick)]
    check_targets()
    if options.list:
        for row in chosen:
            print(f"{row.name:60} {row.rounds} x {len(row.contestants)}")
        return
    bench = Bench(options)
    load = os.getloadavg()[0]
    print(f"{len(chosen)} rows; cores: {bench.cpu} for what is measured, {bench.others} for the load"
          + (f"\nNOTE: the load average is {load:.1f}. The figures will be noise." if load > 0.5 else ""))
    results, batching, begun = {}, None, time.monotonic()
    out = Path(options.out) if options.out else None
    if out and (out / "results.json").exists():
        before = json.loads((out / "results.json").read_text())
        results = {r["name"]: r for r in before["rows"]}
        bench.versions = before["machine"]["versions"]
        batching = before.get("batching")
    for row in chosen:
        samples = bench.run(row)
        if not samples:
            continue
        metrics = [(row.metric, row.unit)]
        if row.group == "timers":
            metrics = [("arm_ns", "ns"), ("cancel_ns", "ns"), ("fire_ns", "ns"), ("bytes", "bytes")]
        cores = {"one": f"{bench.cpu}", "two": f"{bench.cpu} and {bench.others}"}[row.cores]
        results[row.name] = {"name": row.name, "group": row.group, "parameters": row.parameters, "cores": cores, "metrics": metrics,
                             "samples": samples}
        print_row(results[row.name])
    if not only or "batching" in only:
        program = Path(options.build) / "bench" / "batching"
        done = subprocess.run([str(program), f"cpu={bench.cpu}"] + (["quick=1"] if options.quick else []), capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{program}\n{done.stderr}")
        batching = json.loads(done.stdout)
        print(f"\nbatching: t_s {batching['t_s']:.0f} ns, t_k {batching['t_k']:.0f} ns, t_r {batching['t_r']:.0f} ns")
        for curve in batching["curves"]:
            print(f"  {curve['title']}: B* = {curve['break_even']:.3f}")
            for point in curve["points"]:
                print("    " + "  ".join(f"{k} {v:.4g}" for k, v in point.items()))
    lines = list(target_lines(results))
    if lines:
        print(f"\n{'figures to reach':52} {'on':22} {'against':20} {'to reach':>8} {'reached':>8}   spread")
        for what, ours, other, wanted, found in lines:
            missed = " <" if wanted and found[0] < wanted else ""
            print(f"{what:52} {ours:22} {other:20} {f'{wanted:.2f}' if wanted else '-':>8} {found[0]:8.2f}   {found[1]:.2f} - {found[2]:.2f}{missed}")
    print(f"\n{time.monotonic() - begun:.0f} s")
    if out:
        order = {row.name: i for i, row in enumerate(rows())}
        results = {name: results[name] for name in sorted(results, key=lambda n: order.get(n, len(order)))}
        about = machine(bench)
        out.mkdir(parents=True, exist_ok=True)
        draw(results, batching, out)
        write_documents(results, batching, about, out)
        print(f"written: {out}")


if __name__ == "__main__":
    main()
