# SPDX-License-Identifier: Apache-2.0
"""One thing that is fuzzed, and what may come of it when it is damaged.

refused      one line: Refusal, Unreadable, Damaged, DeviceFailure, Garbled
failed       the check of an artifact noticed: other integers, something that it cannot explain
unchanged    what was read is what was there before
accepted     another input that is as good as the first (a weight of a float model, a word in a text), by reason
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Target:
    """Files in `folder`, one of which is damaged, and `run`, which reads them and says what came of it."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    run: Callable[[], str]
    weight: int = 4
    """How often it is taken: readers that start a program are slow."""


def digest(*values: Any) -> str:
    """Of tensors and JSON values."""
    found = hashlib.sha256()
    for value in values:
        array = (
            value.detach().contiguous().flatten().view(torch.uint8).numpy()
            if isinstance(value, torch.Tensor)
            else value
        )
        found.update(array.tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
    return found.hexdigest()


def same(read: Callable[[], str], reason: str) -> Callable[[], str]:
    """Compare what is read with what was read before anything was damaged."""
    before = read()
    return lambda: "unchanged" if read() == before else f"accepted: {reason}"
