# SPDX-License-Identifier: Apache-2.0
"""What the devices that run llama.cpp share: their settings, and single products.

llama.cpp runs whole models, so each product comes as a model of its own (readers/gguf/cut.py), whose
logits it is. Rows to multiply go to the file's end; ids to look up are tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.device import Session, Setting


class LlamacppDevice:
    """llama.cpp on a CPU: int8 activations, and nothing that apps set otherwise."""

    formats: tuple[str, ...] = ("gguf",)

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        del program
        return (Setting("int8", True, threads),)

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program, setting
        return ()


def evaluate(
    program: bytes,
    batches: Sequence[Mapping[str, NDArray[Any]]],
    load: Callable[[Path], AbstractContextManager[Session]],
) -> list[NDArray[np.float32]]:
    """Device.evaluate with sessions that `load` opens."""
    width = _number(program, b"llama.embedding_length")
    found: list[NDArray[np.float32]] = []
    for batch in batches:
        (given,) = batch.values()
        lookup = np.issubdtype(given.dtype, np.integer)
        ids = given.reshape(-1).tolist() if lookup else range(len(given))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "product.gguf"
            path.write_bytes(program if lookup else _with_rows(program, given, width))
            with load(path) as session:
                logits = session.logits([int(i) for i in ids])
        found.append(logits[:, :width] if lookup else logits)
    return found


def _with_rows(program: bytes, rows: NDArray[Any], width: int) -> bytes:
    """The program with rows in token_embd, the last tensor of the file: float32 [vocabulary, width]."""
    size = _number(program, b"llama.vocab_size") * width * 4
    content, own = bytearray(program), np.ascontiguousarray(rows, np.float32).tobytes()
    content[len(content) - size : len(content) - size + len(own)] = own
    return bytes(content)


def _number(program: bytes, key: bytes) -> int:
    """The value of a key, behind its type."""
    at = program.index(key) + len(key) + 4
    return int.from_bytes(program[at : at + 4], "little")
