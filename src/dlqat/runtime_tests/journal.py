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
from pathlib import Path
from typing import Any


class Journal:
    """A persistent dict from a key to JSON. Values are never changed."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{digest(identity)}.jsonl"
        self._answers: dict[str, Any] = {}
        whole = 0
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.splitlines(keepends=True):
            try:
                key, value = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._answers[key] = value
            whole += len(line)
        self._stream = self.path.open("ab")
        self._stream.truncate(whole)

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


def digest(what: Any) -> str:
    """Sixteen hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
