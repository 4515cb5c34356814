# SPDX-License-Identifier: Apache-2.0
"""Answers of a model, kept as they are given: an evaluation that was killed goes on where it stopped.

A file of JSON lines, appended and flushed one by one. Its name is a digest of everything that an answer
depends on (the program's bytes, device, what it says of itself, versions, setting), so other bytes never get old answers. A
line that was cut off by kill -9 is dropped when the file is opened again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dlqat import folder_lock
from dlqat.refusal import Refusal


class Journal:
    """A persistent dict from a key to JSON. Values are never changed."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{digest(identity)}.jsonl"
        if folder.is_symlink() or self.path.is_symlink():
            raise Refusal(f"{self.path} lies behind a symbolic link; remove it")
        self._lock = ExitStack()
        self._lock.enter_context(folder_lock.writing(self.path))
        try:
            self._answers, whole = _answers(self.path)
            self._stream = self.path.open("ab")
            self._stream.truncate(whole)
        except BaseException:
            self._lock.close()
            raise

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Any | None:
        """The answer, or None."""
        return self._answers.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep an answer; it survives the process from here on."""
        self._answers[key] = value
        self._stream.write(json.dumps([key, value]).encode() + b"\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()
        self._lock.close()


def _answers(path: Path) -> tuple[dict[str, Any], int]:
    """What a journal holds, and how many bytes of it are whole lines. Refusal of a file that is no journal."""
    found, whole = dict[str, Any](), 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break  # cut off by a kill
        try:
            key, value = json.loads(line)
            found[str(key)] = value
        except (ValueError, TypeError, RecursionError) as error:
            raise Refusal(f"{path} is damaged; delete it, and its questions are asked again") from error
        whole += len(line)
    return found, whole


def digest(what: Any) -> str:
    """Sixteen hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
