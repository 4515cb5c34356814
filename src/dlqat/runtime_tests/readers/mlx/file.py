# SPDX-License-Identifier: Apache-2.0
"""A safetensors file taken apart: where each tensor's bytes are, and that they are all there is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.leftover import leftover

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """`start` in the file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class File:
    """The whole file, mapped."""

    path: Path
    blob: NDArray[np.uint8]
    tensors: dict[str, Tensor]
    faults: tuple[str, ...]

    def bytes_of(self, name: str) -> NDArray[np.uint8]:
        tensor = self.tensors[name]
        return self.blob[tensor.start : tensor.start + tensor.size]

    def floats(self, name: str) -> NDArray[np.float32]:
        return floats(self.tensors[name].kind, self.bytes_of(name)).reshape(self.tensors[name].shape)


def floats(kind: str, content: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes of a float type."""
    match kind:
        case "F32":
            return content.view("<f4")
        case "F16":
            return content.view("<f2").astype(np.float32)
        case "BF16":  # the upper half of a float32
            return (content.view("<u2").astype(np.uint32) << 16).view(np.float32)
        case other:
            raise Unreadable(f"{other} is no float type")


def read(path: Path) -> File:
    """Unreadable if the header does not fit the file."""
    blob = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(bytes(blob[:8]), "little")
    if length > len(blob) - 8:
        raise Unreadable(f"{path.name} is truncated: its header has {length} bytes")
    header = json.loads(bytes(blob[8 : 8 + length]))
    found: dict[str, Tensor] = {}
    for name, row in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + int(i) for i in row["data_offsets"])
        shape = tuple(int(n) for n in row["shape"])
        found[name] = Tensor(str(row["dtype"]), shape, start, end - start)
        if row["dtype"] not in SIZES or end > len(blob) or prod(shape) * SIZES[row["dtype"]] != end - start:
            raise Unreadable(f"{name}: its row {row} does not fit the file")
    spans = [(0, 8 + length), *((t.start, t.size) for t in found.values())]
    return File(path, blob, found, tuple(leftover(path.name, blob, spans)))
