# SPDX-License-Identifier: Apache-2.0
"""The web app, built once for this dlqat by npm, without a model: `dlqat-app serve` puts an artifact beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

from dlqat.apps.new import HERE, template
from dlqat.fetched import home
from dlqat.refusal import Refusal

SECONDS = 600
BUILD = ("npm install --ignore-scripts --no-audit --no-fund --silent", "npm run --silent build")


def built() -> Path:
    """The folder of the built app; npm is asked the first time. Refusal if that is not possible."""
    folder = place()
    if not folder.is_dir():
        if shutil.which("npm") is None:
            raise Refusal("the web app is built with npm, which is not on PATH; install Node 20 or newer")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="web-app-", dir=folder.parent) as work:
            _build(Path(work))
            (Path(work) / "dist" / "model").mkdir(exist_ok=True)
            if not folder.is_dir():  # another process was faster
                os.rename(Path(work) / "dist", folder)  # noqa: PTH104 atomic, as in own_folder.py
    return folder


def place() -> Path:
    """Where the build of these very sources lies."""
    files = sorted(p for part in ("web", "shared") for p in (HERE / part).rglob("*") if p.is_file())
    digest = sha256(b"".join(str(p.relative_to(HERE)).encode() + p.read_bytes() for p in files))
    return home() / f"web-app-{digest.hexdigest()[:12]}"


def _build(work: Path) -> None:
    template("web", work)
    for command in BUILD:
        done = subprocess.run(
            command.split(), cwd=work, capture_output=True, text=True, timeout=SECONDS, check=False,
            env={**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"},
        )  # fmt: skip
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines() or [f"code {done.returncode}"]
            raise Refusal(f"the web app was not built: {command} says {said[0][:300]}")
