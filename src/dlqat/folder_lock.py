# SPDX-License-Identifier: Apache-2.0
"""One command at a time writes a folder, and none while another reads it.

Two that mixed their files would leave an artifact of both, each of them with exit code 0. The lock is flock on a file
beside the folder (the folder itself is replaced by rename), so the system releases it however a process ends, kill -9
included; a file that is left of a kill locks nothing, and the next command takes it away. In it stands who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlqat.refusal import Refusal

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""A file system (some network drives) without flock."""
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT}
"""No file can be made beside the folder, so nobody can replace the folder either."""


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Nobody else reads or writes `folder` while the block runs. Refusal if somebody does.

    The folders above are made; those that the block leaves empty go again."""
    parent = Path(folder).absolute().parent
    new = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{parent} cannot be made ({error.strerror}); choose another folder") from error
    try:
        with _held(Path(folder), fcntl.LOCK_EX, "writing"):
            yield
    finally:
        with suppress(OSError):  # not empty
            for made in new:
                made.rmdir()


@contextmanager
def reading(folder: Path) -> Generator[None]:
    """Nobody writes `folder` while the block runs; others may read it. Refusal if somebody writes it."""
    with _held(Path(folder), fcntl.LOCK_SH, "reading"):
        yield


@contextmanager
def _held(folder: Path, kind: int, what: str) -> Generator[None]:
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 resolve() would follow a link; the name is what is locked
    file = folder.with_name(f".{folder.name}.dlqat-lock")
    stream = _locked(folder, file, kind, what)
    try:
        yield
    finally:
        if stream is not None:
            _release(stream, file)


def _locked(folder: Path, file: Path, kind: int, what: str) -> int | None:
    """A descriptor that holds the lock; None where there is nothing to lock or no way to."""
    while True:
        try:
            stream = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            if kind == fcntl.LOCK_EX and not folder.exists():
                raise Refusal(f"{folder} cannot be made ({error.strerror}); choose another folder") from error
            return None
        try:
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(stream, 100, 0).decode("ascii", "replace").strip()
            os.close(stream)
            raise Refusal(_busy(folder, holder)) from error
        except OSError as error:
            os.close(stream)
            if error.errno not in _NO_LOCKS:
                raise
            return None
        if _same(stream, file):  # else its holder has just ended, and taken the file away
            os.ftruncate(stream, 0)
            os.pwrite(stream, f"{os.getpid()} {what}".encode(), 0)
            return stream
        os.close(stream)


def _busy(folder: Path, holder: str) -> str:
    pid, _, what = holder.partition(" ")
    who = f" (pid {pid})" if pid.isdigit() else ""
    what = what if what in ("writing", "reading") else "using"
    return f"another dlqat command{who} is {what} {folder}; wait until it has ended, or choose another folder"


def _same(stream: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream), file.lstat())
    except FileNotFoundError:
        return False


def _release(stream: int, file: Path) -> None:
    """The last one takes the file away, as long as it has the lock for itself."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same(stream, file):
            file.unlink()
    except OSError:
        pass  # others read on; or the folder above is gone
    finally:
        os.close(stream)
