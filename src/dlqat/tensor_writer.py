# SPDX-License-Identifier: Apache-2.0
"""safetensors written one tensor at a time: the bytes are those of safetensors' own save_file, which wants all of them at once.

The header stands first and says where everything is, by element type and name, so tensors go into an unnamed file as they
come and are copied behind the header at the end. What is in memory is one tensor, or some rows of it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Type -> its name in the file, in the order in which safetensors sorts them."""
_COPIED = 1 << 24
ROWS = 1 << 24
"""Numbers that are worked on at a time where rows do not depend on each other: 64 MB as float32."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor in the unnamed file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


def sorted_as_ever(part: Part) -> tuple[Any, ...]:
    """safetensors' order."""
    return list(_TYPES).index(part.dtype), part.name.encode()


def as_they_come(part: Part) -> tuple[Any, ...]:
    """The order in which they were added."""
    return (part.start,)


Order = Callable[[Part], tuple[Any, ...]]


class Writer:
    """Takes the tensors of one file."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool, self._parts = spool, dict[str, Part]()

    def add(self, name: str, tensor: Tensor) -> None:
        """A whole tensor."""
        self.rows(name, tensor.dtype, tensor.shape, [tensor])

    def rows(self, name: str, dtype: torch.dtype, shape: Sequence[int], chunks: Iterable[Tensor]) -> None:
        """A tensor that comes some rows at a time."""
        assert name not in self._parts, f"tensor {name} is written twice"
        start = self._spool.tell()
        for chunk in chunks:
            assert chunk.dtype == dtype, f"{name}: {chunk.dtype} among {dtype}"
            self._spool.write(chunk.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        size = self._spool.tell() - start
        assert size == prod(shape) * dtype.itemsize, f"{name}: {size} bytes of {list(shape)}"
        self._parts[name] = Part(name, dtype, tuple(shape), start, size)

    def finish(self, path: Path, metadata: Mapping[str, str], order: Order) -> None:
        """Write `path`."""
        parts = sorted(self._parts.values(), key=order)
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        at = 0
        for part in parts:
            offsets = [at, at + part.size]
            header[part.name] = {"dtype": _TYPES[part.dtype], "shape": list(part.shape), "data_offsets": offsets}
            at += part.size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._spool.flush()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part in parts:
                self._copy(part, file)

    def _copy(self, part: Part, file: IO[bytes]) -> None:
        self._spool.seek(part.start)
        left = part.size
        while left:
            found = self._spool.read(min(left, _COPIED))
            file.write(found)
            left -= len(found)


@contextmanager
def writing(path: Path, metadata: Mapping[str, str] | None = None, order: Order = sorted_as_ever) -> Generator[Writer]:
    """Tensors for `path`, which is there when the block ends; a block that raises leaves nothing."""
    with tempfile.TemporaryFile(dir=path.parent) as stream:
        made = Writer(stream)
        yield made
        made.finish(path, metadata or {}, order)


def blocks(rows: int, width: int) -> Iterable[slice]:
    """The rows of a matrix, about ROWS numbers at a time."""
    step = max(1, ROWS // max(1, width))
    return (slice(first, min(rows, first + step)) for first in range(0, rows, step))
