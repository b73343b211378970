#!/usr/bin/python3
"""Clients that others wrote against c_examples/http_server.c: others.py wrk|chromium HTTP_SERVER

Exit status 77: the client is not installed, or UPCALL_BACKEND is denied here."""
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import server

PAGE = """<!doctype html><html><head><title>Upcall</title><link rel="stylesheet" href="style.css">
<link rel="icon" href="data:,"></head><body><img src="picture.svg"><p id="result">nothing yet</p>
<script type="module">
import { check } from "./module.mjs";
try {
    document.querySelector("#result").textContent = JSON.stringify(await check());
} catch (error) {
    document.querySelector("#result").textContent = error;
}
</script></body></html>"""

MODULE = """export async function check() {
    const text = async (url, headers) => { const answer = await fetch(url, { headers }); return [answer.status, await answer.text()]; };
    const many = await Promise.all([...Array(200).keys()].map(i => fetch(`numbers.json?${i}`).then(answer => answer.json())));
    const large = new Uint8Array(await (await fetch("large.bin")).arrayBuffer());
    return {
        color: getComputedStyle(document.querySelector("#result")).color,
        picture: document.querySelector("img").decode ? (await document.querySelector("img").decode(), document.querySelector("img").naturalWidth) : 0,
        range: await text("digits.txt", { Range: "bytes=2-5" }),
        missing: (await text("missing"))[0],
        directory: (await fetch("directory")).url.replace(location.origin, ""),
        many: many.every(value => value.answer === 42) && many.length,
        large: [large.length, large.every((byte, i) => byte === i % 251)],
    };
}"""

EXPECTED = {"color": "rgb(1, 2, 3)", "picture": 30, "range": [206, "2345"], "missing": 404, "directory": "/directory/", "many": 200,
            "large": [3_000_000, True]}

FILES = {"index.html": PAGE, "module.mjs": MODULE, "style.css": "#result { color: rgb(1, 2, 3) }", "digits.txt": "0123456789",
         "numbers.json": '{"answer": 42}', "directory/index.html": "here",
         "picture.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"/>'}


def write_files(root):
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "large.bin").write_bytes((bytes(range(251)) * 12000)[:3_000_000])


def find(*names):
    for name in names:
        if path := shutil.which(name):
            return path
    print(f"{names[0]} is not installed", file=sys.stderr)
    sys.exit(77)


def wrk(program, port, _):
    for name in ("digits.txt", "large.bin"):
        output = subprocess.run([program, "--threads", "1", "--connections", "32", "--duration", "1", "--timeout", "60", f"http://127.0.0.1:{port}/{name}"],
                                check=True, text=True, stdout=subprocess.PIPE, timeout=server.PATIENCE).stdout
        print(output)
        assert int(re.search(r"(\d+) requests in", output)[1]) > 0
        assert not re.search("Non-2xx|Socket errors", output)


def chromium(program, port, profile):
    output = subprocess.run([program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
                             "--virtual-time-budget=20000", "--dump-dom", f"http://127.0.0.1:{port}/"],
                            check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=2 * server.PATIENCE).stdout
    found = re.search('<p id="result">(.*)</p>', output)
    assert found, output
    print(found[1])
    result = json.loads(found[1].replace("&quot;", '"'))
    assert result == EXPECTED, f"{result} instead of {EXPECTED}"


def main():
    what, server.PROGRAM = sys.argv[1:]
    run, program = {"wrk": (wrk, ["wrk"]), "chromium": (chromium, ["chromium", "chromium-headless-shell", "google-chrome"])}[what]
    program = find(*program)
    with tempfile.TemporaryDirectory(prefix="upcall-http.", ignore_cleanup_errors=True) as directory:
        root = pathlib.Path(directory) / "root"
        root.mkdir()
        write_files(root)
        running = server.Server(root)
        try:
            run(program, running.port, directory + "/profile")
            print(running.stop(), "requests")
        finally:
            running.process.kill()


main()
