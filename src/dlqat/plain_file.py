# SPDX-License-Identifier: Apache-2.0
"""Paths that come out of files, and files that are no files: resolved inside their folder, or refused.

A name in a manifest or an index may lead out of its folder, and what stands under it may be a pipe that never ends, a
device, a folder, or a link in a circle. Whoever opens a file of a model or an artifact asks here first.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from dlqat.refusal import Refusal

MOST_TEXT = 256 << 20
"""Bytes of a text or JSON file; a tokenizer.json has 30 MB. More is not read into memory."""


def fault(path: Path) -> str | None:
    """Why `path` is not a plain file that can be read, or None. Links are followed."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 a path with a NUL in it raises ValueError
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISREG(mode):
        return None
    return "is a folder, not a file" if stat.S_ISDIR(mode) else "is not a plain file (a pipe, a socket or a device)"


def name_fault(name: object) -> str | None:
    """Why a name that stands in a file does not stay below a folder, whatever lies there; or None."""
    if not isinstance(name, str) or not name or any(ord(c) < 32 for c in name):
        return "is not the name of a file"
    parts = PurePosixPath(name).parts
    if name.startswith(("/", "~")) or PureWindowsPath(name).drive or ".." in parts or ".." in name.split("\\"):
        return "leads out of its folder"
    return None


def inside_fault(folder: Path, name: object) -> str | None:
    """Why `name` is not a plain file below `folder`, links followed; or None."""
    if (reason := name_fault(name)) is not None:
        return reason
    path, top = os.path.realpath(folder / str(name)), os.path.realpath(folder)
    if not Path(path).is_relative_to(top):
        return "is a link that leads out of its folder"
    return fault(folder / str(name))


def text(path: Path, advice: str = "") -> str:
    """The content of a text file. Refusal if it cannot be read, is no UTF-8 or too large; `advice`: what to do then."""
    if (reason := fault(path)) is not None:
        raise Refusal(f"{path} {reason}{advice}")
    if (size := path.stat().st_size) > MOST_TEXT:
        raise Refusal(
            f"{path} has {size / 1e6:.0f} MB, more than a file of text has here ({MOST_TEXT >> 20} MB){advice}"
        )
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 text ({error}){advice}") from error
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}){advice}") from error
