# SPDX-License-Identifier: Apache-2.0
"""dlqat-app serve: a built web app on this machine, for a browser here, or for a phone through `adb reverse`.

Browsers give digests, service workers and threads to https and to localhost only, so it listens on loopback and nowhere
else.
"""

from __future__ import annotations

import http.server
from pathlib import Path

from dlqat import app_file
from dlqat.apps import site
from dlqat.apps.new import described
from dlqat.apps.platforms import fault
from dlqat.devices.web.own_page import OwnPage
from dlqat.refusal import Refusal

MODEL = "model"


class Handler(OwnPage):
    """The app's files; below model/ those of the artifact, which may lie elsewhere."""

    names = ("127.0.0.1", "localhost")
    server: Site  # pyright: ignore[reportIncompatibleVariableOverride]

    def place(self, path: str) -> tuple[Path, str]:
        first, _, rest = path.partition("/")
        if first == MODEL and self.server.model is not None:
            return self.server.model, rest
        return self.server.app, path or "index.html"

    def do_GET(self) -> None:  # noqa: N802 the base class's name
        if self.path.partition("?")[0] != f"/{MODEL}/{app_file.NAME}" or self.server.description is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.server.description)))
        self.end_headers()
        self.wfile.write(self.server.description)
        return None


class Site(http.server.ThreadingHTTPServer):
    """What is served. `model`: an artifact; None: the app has its model inside."""

    daemon_threads = True

    def __init__(self, app: Path, model: Path | None, port: int, description: bytes | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.app, self.model, self.description = app, model, description

    @property
    def address(self) -> str:
        return f"http://localhost:{self.server_address[1]}/"


def site_of(folder: Path, port: int) -> Site:
    """A server for a built app (what `npm run build` made), or for an artifact."""
    if (folder / "index.html").is_file() and (folder / "sw.js").is_file():
        app_file.read(folder / MODEL)
        where, model, description = folder, None, None
    else:
        found, app = described(folder)
        if (reason := fault("web", app, found)) is not None:
            raise Refusal(f"{folder} {reason}")
        where, model, description = site.built(), folder, app_file.text(app).encode()
    try:
        return Site(where, model, port, description)
    except OSError as error:
        raise Refusal(f"port {port} is taken ({error.strerror}); choose another with --port") from error
