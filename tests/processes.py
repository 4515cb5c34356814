# SPDX-License-Identifier: Apache-2.0
"""What the tests of failures ask about processes of this machine (Linux)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dlqat.devices.process import process_tree


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *process_tree.descendants(pid)]


def words(pid: int) -> str:
    """Its command line; empty when it has ended (a zombie has ended)."""
    path = Path(f"/proc/{pid}/cmdline")
    try:
        return path.read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def browser(pids: Sequence[int]) -> int | None:
    """The main process of a headless Chromium among them."""
    return next((p for p in pids if "--headless" in words(p) and "--type=" not in words(p)), None)


def all_gone(pids: Sequence[int], seconds: float = 30) -> bool:
    """Whether these processes end soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(words(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False
