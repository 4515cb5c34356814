# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium with one page, behind wire.py: `python -m dlqat.devices.web.browser_worker PROVIDER THREADS`.

A web server on loopback gives the page our script, the runtime and the program, with the two headers that
allow shared memory (threads). Arrays travel through it as raw bytes; everything else through playwright. It answers
this page and nobody else (own_page.py).
The driver kills this process when it takes too long, and Chromium ends with it.
"""

from __future__ import annotations

import http.server
import os
import sys
import threading
from pathlib import Path
from typing import Any

from dlqat.devices import setup
from dlqat.devices.process import wire, worker
from dlqat.devices.process.wire import Message
from dlqat.devices.web.chromium import FLAGS, environment, executable
from dlqat.devices.web.own_page import OwnPage

WEB = Path(__file__).parent
MOST = 1 << 32
"""Bytes of the arrays in one answer."""


class Handler(OwnPage):
    """Files under three roots, and /in and /out for the payload of the message at work."""

    server: Site  # pyright: ignore[reportIncompatibleVariableOverride] # what Site was given

    def place(self, path: str) -> tuple[Path, str]:
        first, _, rest = path.partition("/")
        root = self.server.roots.get(first)
        return (root, rest) if root else (WEB, first or "index.html")

    def do_GET(self) -> None:  # noqa: N802 the base class's name
        if self.path != "/in":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.payload)))
        self.end_headers()
        self.wfile.write(self.server.payload)
        return None

    def do_POST(self) -> None:  # noqa: N802 the base class's name
        length = self.headers.get("Content-Length", "")
        if self.path != "/out" or not length.isdecimal() or int(length) > MOST:
            return self.send_error(403)
        self.server.payload = self.rfile.read(int(length))
        self.send_response(204)
        self.end_headers()
        return None


class Site(http.server.ThreadingHTTPServer):
    """The web server with what it serves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.roots = {
            "ort": setup.home() / "npm" / "node_modules" / "onnxruntime-web" / "dist",
            "wllama": setup.home() / "wllama" / "node_modules" / "@wllama" / "wllama" / "esm",
        }
        self.payload = b""
        threading.Thread(target=self.serve_forever, daemon=True).start()


def answer(page: Any, site: Site, message: Message) -> Message:
    """Hand a message to the page, and its answer back."""
    if message.header["op"] == "open":
        site.roots["model"] = Path(message.header["spec"]["file"]).parent
    frame = wire.encode(message)
    _, header_length, _ = wire.HEAD.unpack(frame[: wire.HEAD.size])
    site.payload = frame[wire.HEAD.size + header_length :]
    shapes = [{"name": n, "dtype": a.dtype.name, "shape": list(a.shape)} for n, a in message.arrays.items()]
    try:
        found: dict[str, Any] = page.evaluate("h => window.call(h)", {**message.header, "arrays": shapes})
    except Exception as error:  # noqa: BLE001 the page crashed, the browser went away
        return Message({"error": f"the page failed: {' '.join(str(error).split())[:300]}"})
    return wire.with_payload(found, site.payload)


def main() -> None:
    """Serve until the driver closes the stream."""
    sink = worker.own_stdout()
    worker.end_with_parent()
    provider, threads = sys.argv[1:3]
    from playwright.sync_api import sync_playwright

    site = Site()
    with sync_playwright() as playwright:
        browser: Any = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS), env=environment())
        page: Any = browser.new_page()
        page.on("console", lambda line: print(line.text, file=sys.stderr, flush=True))
        page.on("crash", lambda _: _gone("the page crashed"))
        browser.on("disconnected", lambda _: _gone("Chromium ended"))
        page.goto(f"http://127.0.0.1:{site.server_port}/index.html?provider={provider}&threads={threads}")
        page.wait_for_function("window.ready === true", timeout=120_000)
        worker.serve(lambda message: answer(page, site, message), sys.stdin.buffer, sink)
        os._exit(0)  # Chromium goes with playwright's driver; nothing is left to save


def _gone(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
    os._exit(70)


if __name__ == "__main__":
    main()
