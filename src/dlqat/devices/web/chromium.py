# SPDX-License-Identifier: Apache-2.0
"""Which Chromium the browser devices start, and how."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dlqat.devices import setup

FLAGS = (
    "--no-sandbox",  # containers have no user namespaces; only our own page is loaded
    "--disable-quic",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",  # a software adapter where there is no GPU
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """$DLQAT_CHROMIUM, the one of `dlqat-devices --set-up chromium`, or the system's. None: there is none."""
    own = _unpacked() / "usr" / "lib" / "chromium" / "chromium"
    if named := os.environ.get("DLQAT_CHROMIUM"):
        return named
    if own.is_file():
        return str(own)
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def fault() -> str | None:
    """None if there is a program to start, else the reason why not."""
    found = executable()
    if found is None:
        return "no Chromium; dlqat-devices --set-up chromium, or name one in DLQAT_CHROMIUM"
    return None if shutil.which(found) else f"DLQAT_CHROMIUM names {found}, which is not a program"


def environment() -> dict[str, str | float | bool]:
    """The environment in which it finds the libraries that were unpacked beside it."""
    folders = [f for lib in _unpacked().glob("usr/lib/*-linux-gnu") for f in (lib, lib / "pulseaudio") if f.is_dir()]
    known = os.environ.get("LD_LIBRARY_PATH")
    path = os.pathsep.join([*map(str, folders), *([known] if known else [])])
    return {**os.environ, **({"LD_LIBRARY_PATH": path} if folders else {})}


def _unpacked() -> Path:
    return setup.home() / "chromium"
