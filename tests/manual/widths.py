#!/usr/bin/env python3
"""No page of the manual is wider than the screen, on a phone as on a desktop: what is wide scrolls by itself. Asked of a browser.

widths.py DOXYFILE       makes the site, serves it on loopback, and has a headless Chromium lay out each page in both widths

Exit status: 0, 1, or 77 where Doxygen or Chromium is not installed.
"""

import functools
import http.server
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

WIDTHS = (360, 1400)
# A page that loads the others in a frame, one after the other, and says what it found.
CHECK = """<!doctype html><iframe id="frame" style="height: 800px; border: 0"></iframe><pre id="said"></pre><script>
const said = document.getElementById("said"), frame = document.getElementById("frame");
async function check() {
    for (const width of WIDTHS)
        for (const page of PAGES) {
            frame.style.width = width + "px";
            await new Promise(loaded => { frame.onload = loaded; frame.src = page; });
            await new Promise(later => setTimeout(later, 20));
            const root = frame.contentDocument.documentElement, body = frame.contentDocument.getElementById("doc-content");
            const beyond = Math.max(root.scrollWidth - root.clientWidth, body.scrollWidth - body.clientWidth);
            said.textContent += `${page} ${width} ${beyond}\\n`;
        }
    said.textContent += "done\\n";
}
check();
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # the browser leaves a page before its last script has come


def main():
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    for name, found in (("doxygen", shutil.which("doxygen")), ("chromium", browser)):
        if not found:
            print(f"{name} is not installed")
            return 77
    with tempfile.TemporaryDirectory(prefix="upcall-manual.", ignore_cleanup_errors=True) as work:
        doxyfile = pathlib.Path(sys.argv[1]).read_text() + f"\nOUTPUT_DIRECTORY = {work}\n"
        subprocess.run(["doxygen", "-"], input=doxyfile, text=True, check=True)
        site = pathlib.Path(work, "html")
        pages = sorted(page.name for page in site.glob("*.html") if re.match(r"(?!functions_)[a-z]+(_[a-z]+)*\.html|group__|class.*loop\.html", page.name))
        (site / "check.html").write_text(CHECK.replace("WIDTHS", repr(list(WIDTHS))).replace("PAGES", repr(pages)))
        server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            said = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                                   f"--user-data-dir={work}/browser", "--window-size=1600,1000", "--timeout=240000",
                                   "--virtual-time-budget=200000", "--dump-dom", f"http://127.0.0.1:{server.server_port}/check.html"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=280).stdout
        finally:
            server.shutdown()
    found = re.findall(r"^(?:.*>)?(\S+\.html) (\d+) (\d+)$", said, re.MULTILINE)
    wide = [line for line in found if int(line[2]) > 0]
    for page, width, beyond in wide:
        print(f"FAILED: on a screen of {width} pixels {page} goes {beyond} beyond")
    print(f"{len(found)} of {len(pages) * len(WIDTHS)} looked at")
    return bool(wide) or "\ndone" not in said or len(found) != len(pages) * len(WIDTHS)


if __name__ == "__main__":
    sys.exit(main())
