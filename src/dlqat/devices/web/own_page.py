# SPDX-License-Identifier: Apache-2.0
"""A web server on loopback for one page of ours: plain files, and the two headers that allow shared memory (threads).

It answers that page and nobody else: another site that the user has open could reach it by its port, or by a name that
leads here.
"""

from __future__ import annotations

import http.server
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dlqat import plain_file


class OwnPage(http.server.SimpleHTTPRequestHandler):
    """Answers requests for files by the page's own address, from itself."""

    extensions_map = {  # noqa: RUF012 the base class has it so
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }
    names = ("127.0.0.1",)
    """By which names of this machine the page may be opened."""

    def place(self, path: str) -> tuple[Path, str]:
        """The folder that `path` (without the first slash) lies in, and its name there."""
        raise NotImplementedError

    def translate_path(self, path: str) -> str:
        folder, name = self.place(unquote(path.split("?", maxsplit=1)[0]).lstrip("/"))
        return str(folder / ".none" if plain_file.inside_fault(folder, name) else folder / name)

    def parse_request(self) -> bool:
        """Only what our page asks: by its own address, from itself."""
        if not super().parse_request():
            return False
        port, host = self.connection.getsockname()[1], self.headers.get("Host")
        asked = host in [f"{name}:{port}" for name in self.names]
        own = asked and self.headers.get("Origin", f"http://{host}") == f"http://{host}"
        if not own or self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            self.send_error(403)
            return False
        return True

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
        del format, args
