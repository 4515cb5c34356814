# SPDX-License-Identifier: Apache-2.0
"""End a process with all that it started, whatever group or session that has made its own, and with what it left.

Killing the process group is not enough: playwright starts Chromium in a session of its own, and relies on Chromium
seeing its pipe close. A browser that hangs does not see it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path


def kill(pid: int) -> None:
    """SIGKILL to the process, its group and (on Linux) all descendants."""
    found = descendants(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    end(found)


def end(pids: Sequence[int]) -> None:
    """SIGKILL to each. What has ended already is no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Children of the process, their children, and so on, as /proc tells now; none where there is no /proc."""
    children = defaultdict[int, list[int]](list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            children[int(fields[1])].append(int(stat.parent.name))
    found = children[pid][:]
    for one in found:  # grows while it is read
        found += children[one]
    return found


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders PREFIX PID - ANYTHING of processes that were killed and could not do it themselves."""
    for left in parent.glob(f"{prefix}*-*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except (ValueError, ProcessLookupError):
            shutil.rmtree(left, ignore_errors=True)
        except OSError:  # it runs, as another user
            continue
