# SPDX-License-Identifier: Apache-2.0
"""Folders that dlqat replaces: it deletes what it wrote itself, and nothing else, and never through a link.

    NAME/.dlqat-written.json     path -> sha256 of every file that dlqat put into the folder
    .NAME.dlqat-draft/           beside it: what is being written; vanishes if the writer raises
    .NAME.dlqat-old/             what stood there, from one rename to the other and until it is deleted

A folder is replaced if every file in it is in that list and still has those bytes. Anything else (a file of the user, one
that was edited since, a link) is a reason to refuse, before any work; what turns up later is left where it is. A kill
between the two renames leaves the old folder beside its place; the next write puts it back.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from dlqat import atomic, folder_lock
from dlqat.refusal import Refusal

MARKER = ".dlqat-written.json"
KEPT = ".dlqat-eval"
"""Answers that dlqat-eval has collected, under the digest of what they are about: they move into the new folder."""
_LITTER = (".DS_Store", f".*{atomic.DRAFT}")
"""What may go besides: what a Mac's Finder leaves in every folder, and drafts of writers that were killed."""
Files = Mapping[str, str]
"""Path in a folder -> sha256."""
Earlier = Callable[[Path], Files]
"""What an earlier dlqat, which wrote no marker, put into a folder."""


def nothing(folder: Path) -> Files:
    """Of a kind of folder that no earlier dlqat wrote."""
    return {}


@contextmanager
def replacing(target: Path, earlier: Earlier = nothing) -> Generator[Path]:
    """A fresh folder that takes the place of `target` when the block ends, or vanishes if it raises.

    Refusal if what stands there is not ours alone, or somebody else is writing it."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock.writing(target):
        old = _put_back(target, earlier)
        refuse_foreign(target, earlier)
        with _draft(target) as draft:
            yield draft
            _write(draft, {p.relative_to(draft).as_posix(): atomic.sha256(p) for p in _files(draft)})
            if target.exists():
                target.rename(old)
            draft.rename(target)
        if old.exists():
            _delete(old, target, earlier)


def refuse_foreign(folder: Path, earlier: Earlier = nothing) -> None:
    """Refusal if `folder` cannot be replaced."""
    if (reason := foreign(folder, earlier)) is not None:
        raise Refusal(f"{folder} {reason}, and would be replaced as a whole; move it away, or choose another place")


def foreign(folder: Path, earlier: Earlier = nothing) -> str | None:
    """Why `folder` is not of dlqat alone, as it wrote it; None if it is, or is empty, or does not exist."""
    if folder.is_symlink():
        return "is a symbolic link, which dlqat does not follow"
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is not a folder"
    known = written(folder, earlier)
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name in (MARKER, KEPT) or name.startswith(f"{KEPT}/"):
            continue
        if not stat.S_ISREG(path.lstat().st_mode):
            return f"holds {name}, which is not a plain file"
        if any(fnmatch(path.name, pattern) for pattern in _LITTER):
            continue
        if name not in known:
            return f"holds {name}, which dlqat did not write"
        if atomic.sha256(path) != known[name]:
            return f"holds {name}, which was changed since dlqat wrote it"
    return None


def written(folder: Path, earlier: Earlier = nothing) -> dict[str, str]:
    """What dlqat put into a folder, as its marker says."""
    path = folder / MARKER
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8")) if not path.is_symlink() and path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        found = {}
    files: Any = cast("dict[str, Any]", found).get("files") if isinstance(found, dict) else None
    listed = cast("dict[str, Any]", files) if isinstance(files, dict) else {}
    return {**earlier(folder), **{name: str(digest) for name, digest in listed.items()}}


def marked(folder: Path) -> bool:
    """Whether dlqat keeps a list of what it writes into `folder`."""
    return (folder / MARKER).is_file()


def note(folder: Path, *paths: Path) -> None:
    """Put files that were written into `folder` on its list."""
    _write(folder, {**written(folder), **{p.relative_to(folder).as_posix(): atomic.sha256(p) for p in paths}})


def delete(folder: Path, *names: str) -> None:
    """Delete files of `folder`, as far as they are there. Refusal, before any is deleted, of one that is not ours."""
    known, found = written(folder), [folder / name for name in names if os.path.lexists(folder / name)]
    for path in found:
        ours = not path.is_symlink() and path.is_file() and known.get(path.relative_to(folder).as_posix())
        if not ours or atomic.sha256(path) != ours:
            raise Refusal(
                f"{path} would be overwritten, and dlqat did not write it; move it away, or choose another folder"
            )
    for path in found:
        path.unlink()


def _write(folder: Path, files: Files) -> None:
    atomic.text(folder / MARKER, json.dumps({"format": 1, "files": dict(sorted(files.items()))}, indent=1) + "\n")


def _files(folder: Path) -> Iterator[Path]:
    """Everything below `folder` that is not a folder itself; no link is followed."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        yield from (Path(place, name) for name in sorted([*files, *links]))


@contextmanager
def _draft(target: Path) -> Generator[Path]:
    """An empty folder for what is written; around it one that is known by its name and by the file in it."""
    around = target.with_name(f".{target.name}{atomic.DRAFT}")
    mark = around / MARKER
    if around.is_symlink() or (around.exists() and any(around.iterdir()) and not mark.is_file()):
        raise Refusal(f"{around} is in the way, and dlqat did not write it; move it away")
    shutil.rmtree(around, ignore_errors=True)  # of a writer that was killed
    around.mkdir()
    try:
        mark.touch()
        inner = around / target.name
        inner.mkdir()
        yield inner
    except OSError as error:
        if error.filename is None:  # a disk that fills while a file is written does not say where
            error.filename = str(target)
        raise
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _put_back(target: Path, earlier: Earlier) -> Path:
    """The place for what stands at `target`, empty. What a killed writer left there goes back, or is deleted."""
    old = target.with_name(f".{target.name}.dlqat-old")
    if (reason := foreign(old, earlier)) is not None:
        raise Refusal(f"{old} {reason}, and is in the way; move it away")
    if old.exists():
        if os.path.lexists(target):
            _delete(old, target, earlier)
        else:
            old.rename(target)
    return old


def _delete(old: Path, target: Path, earlier: Earlier) -> None:
    """Delete what dlqat wrote, file by file, the list last; what it did not write stays in `old`."""
    kept = old / KEPT
    if os.path.lexists(kept) and not os.path.lexists(target / KEPT):
        kept.rename(target / KEPT)
    known = written(old, earlier)
    for path in _files(old):
        name = path.relative_to(old).as_posix()
        litter = any(fnmatch(path.name, pattern) for pattern in _LITTER)
        plain = stat.S_ISREG(path.lstat().st_mode)
        if plain and (litter or (name in known and atomic.sha256(path) == known[name])):
            path.unlink()
    for place, _, _ in os.walk(old, topdown=False):
        if os.listdir(place) in ([], [MARKER]):  # noqa: PTH208 names are enough
            Path(place, MARKER).unlink(missing_ok=True)
            Path(place).rmdir()
