# SPDX-License-Identifier: Apache-2.0
"""Write beside, then rename: a reader sees the old content or the new, never a half (kill -9 included).

A folder takes two renames. A kill between them leaves the old folder beside its place; the next write puts it back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


@contextmanager
def folder(target: Path) -> Generator[Path]:
    """A fresh folder beside `target` that takes its place when the block ends, or vanishes if it raises."""
    target = Path(target).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.draft")
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _over(target: Path, name: str) -> Generator[Path]:
    """The path of `name` beside `target`, to write to; renamed over `target` when the block ends."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(name)
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def file(target: Path) -> AbstractContextManager[Path]:
    """A path beside `target` to write to; renamed over `target` when the block ends.

    The path is always the same, so that the large draft of a killed writer is overwritten by the next: one at a time."""
    return _over(target, f".{Path(target).name}.draft")


def text(target: Path, content: str) -> None:
    """Write `content` to `target` atomically; of two processes that do so at a time, the later one's stays."""
    with _over(target, f".{Path(target).name}.{os.getpid()}.draft") as draft:
        draft.write_text(content, encoding="utf-8")


def writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which may have to be made first."""
    absolute = Path(folder).absolute()
    there = next(p for p in (absolute, *absolute.parents) if p.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
