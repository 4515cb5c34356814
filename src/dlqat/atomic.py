# SPDX-License-Identifier: Apache-2.0
"""Write beside, then rename: a reader sees the old content or the new, never a half (kill -9 included).

A link at the target or at the draft's place is replaced itself; nothing is written through it. For whole folders see
own_folder.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

DRAFT = ".dlqat-draft"
"""The end of the name of everything that is being written."""


@contextmanager
def _over(target: Path, name: str) -> Generator[Path]:
    """The path of `name` beside `target`, to write to; renamed over `target` when the block ends."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(name)
    draft.unlink(missing_ok=True)  # of a writer that was killed, or a link
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def file(target: Path) -> AbstractContextManager[Path]:
    """A path beside `target` to write to; renamed over `target` when the block ends.

    The path is always the same, so that the large draft of a killed writer is gone with the next: one at a time."""
    return _over(target, f".{Path(target).name}{DRAFT}")


def text(target: Path, content: str) -> None:
    """Write `content` to `target` atomically; of two processes that do so at a time, the later one's stays."""
    with _over(target, f".{Path(target).name}.{os.getpid()}{DRAFT}") as draft:
        draft.write_text(content, encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes to `target` atomically."""
    with file(target) as draft:
        shutil.copyfile(source, draft)


def writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which may have to be made first."""
    absolute = Path(folder).absolute()
    there = next(p for p in (absolute, *absolute.parents) if p.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
