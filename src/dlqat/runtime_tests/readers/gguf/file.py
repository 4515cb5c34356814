# SPDX-License-Identifier: Apache-2.0
"""A .gguf file taken apart: metadata, and where each tensor's bytes are (ggml, docs/gguf.md; version 3, little-endian)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.leftover import leftover

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 8: (32, 34), 30: (1, 2), 42: (64, 18)}
"""ggml type -> (numbers, bytes) of a block: F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, BF16,
Q2_0 (llama.cpp's; a fork has the same id for blocks of 128)."""
NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 8: "Q8_0", 30: "BF16", 42: "Q2_0"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` as PyTorch has it; `start` in the file."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class File:
    """The whole file, mapped."""

    path: Path
    blob: NDArray[np.uint8]
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    faults: tuple[str, ...]

    def bytes_of(self, name: str) -> NDArray[np.uint8]:
        tensor = self.tensors[name]
        return self.blob[tensor.start : tensor.start + tensor.size]


def read(path: Path) -> File:
    """Unreadable if the file is not a GGUF, or its table points outside."""
    if path.stat().st_size < 24:
        raise Unreadable(f"{path.name} is too short for a GGUF file")
    blob = np.memmap(path, np.uint8, "r")
    cursor = _Cursor(memoryview(blob.data))
    magic, version, tensors, pairs = cursor.numbers("4sIQQ")
    if magic != b"GGUF" or version != 3:
        raise Unreadable(f"{path.name} is not a GGUF file of version 3")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    table = [_row(cursor) for _ in range(tensors)]
    align = int(metadata.get("general.alignment", 32))
    base = -(-cursor.at // align) * align
    found: dict[str, Tensor] = {}
    for name, shape, kind, offset in table:
        if kind not in BLOCKS:
            raise Unreadable(f"{name}: ggml type {kind} is not one that holds integers of a grid")
        per, size = BLOCKS[kind]
        found[name] = Tensor(kind, shape, base + offset, prod(shape) // per * size)
        if shape[-1] % per or base + offset + found[name].size > len(blob):
            raise Unreadable(f"{name}: its shape {shape} does not fit its type or the file; it is damaged")
    faults = list(leftover(path.name, blob, [(0, cursor.at), *((t.start, t.size) for t in found.values())]))
    faults += [f"tensor {n}: named twice" for n in found if sum(row[0] == n for row in table) > 1]
    return File(path, blob, metadata, found, tuple(faults))


def _row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.text(), cursor.number("I")
    shape = cursor.numbers(f"{dimensions}Q")
    return name, tuple(reversed(shape)), *cursor.numbers("IQ")


class _Cursor:
    """A place in the bytes that moves on."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.at = content, 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{layout}", self.content, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return found

    def number(self, layout: str) -> Any:
        return self.numbers(layout)[0]

    def text(self) -> str:
        length = self.number("Q")
        found = bytes(self.content[self.at : self.at + length])
        if len(found) < length:
            raise Unreadable("a text ends behind the file's end; it is truncated")
        self.at += length
        return found.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _LIST:
            inner, count = self.numbers("IQ")
            if inner in _NUMBERS:
                return list(self.numbers(f"{count}{_NUMBERS[inner]}"))
            return [self.value(inner) for _ in range(count)]
        take: dict[int, Callable[[], Any]] = {_TEXT: self.text}
        return take[kind]() if kind in take else self.number(_NUMBERS[kind])
