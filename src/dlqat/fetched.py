# SPDX-License-Identifier: Apache-2.0
"""Where `dlqat-devices --set-up` puts runtimes that no extra brings: devices run them, exporters ask their tokenizers."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """$DLQAT_DEVICES, or a folder of the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DLQAT_DEVICES") or cache / "dlqat" / "devices").absolute()


def release(package: str, version: str) -> Path:
    """The folder of a Python package's version, complete where it has a file "ready"."""
    return home() / "releases" / f"{package}-{version}"


def transformers_js(version: str = "") -> Path:
    """The folder with transformers.js for Node (of an older `version`), complete where it has a file "ready"."""
    return home() / f"transformers-js{version and '-'}{version}"


LLAMACPP = "cyllama", "0.2.18"
"""The package, and its version, through which llama.cpp is asked and run."""
