# SPDX-License-Identifier: Apache-2.0
"""The bytes of a .gguf file: metadata and tensors, each tensor dequantized when it is asked for.

Own reader, because the public ones do not fit: gguf-py's GGUFReader makes an object of every
string (2.6 s for a vocabulary of 49k), transformers' fast one refuses files with Q5_0 blocks (any
Qwen2.5-0.5B in Q4_K_M), and both of transformers' ways hold the whole dequantized model at once.
The blocks themselves are decoded by gguf-py, which is bit-exact with llama.cpp.

Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlqat.refusal import Refusal

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_SHORT, _DIMENSIONS = 1024, 8
"""Numbers in an array that are kept (scores of a vocabulary are not needed), and dimensions of a tensor at most."""
_FLOATS = {0: "<f4", 1: "<f2"}
_BF16, _Q2_0 = 30, 42


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the tensor table; shape in torch order, offset in bytes from the file's start."""

    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Gguf:
    """A file's metadata (arrays of strings, and long ones, as their length) and tensor table."""

    path: Path
    metadata: dict[str, Any]
    table: dict[str, Entry]

    def tensor(self, name: str) -> Tensor:
        """float32 values of one tensor, in torch order."""
        entry = self.table[name]
        blob = np.memmap(self.path, np.uint8, "r", entry.offset, (entry.size,)) if entry.size else np.zeros(0, np.uint8)
        try:
            return torch.from_numpy(_decode(blob, entry).reshape(entry.shape))
        except (NotImplementedError, ValueError) as error:
            raise Refusal(
                f"{self.path}: tensor {name} of ggml type {entry.kind} cannot be decoded ({error})"
            ) from error


def is_gguf(path: Path) -> bool:
    """Whether a file begins as one, whatever it is called."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def type_name(kind: int) -> str:
    """ggml's name of a type that `read` lets pass."""
    names = {0: "F32", 1: "F16", _BF16: "BF16", _Q2_0: "Q2_0"}
    return names[kind] if kind in names else _gguf("this file").GGMLQuantizationType(kind).name


def read(path: Path) -> Gguf:
    """Parse the header. Refusal if the file is not a GGUF, truncated, or holds a block type nobody decodes."""
    blob = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    if bytes(blob[:4]) != b"GGUF":
        raise Refusal(f"{path} is not a GGUF file (it does not begin with the bytes GGUF)")
    try:
        return _parse(path, _Cursor(blob, 4))
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise Refusal(f"{path} is damaged or truncated ({error}); download it again") from error


class _Cursor:
    """A position that moves through the bytes."""

    def __init__(self, blob: NDArray[np.uint8], position: int) -> None:
        self.blob, self.position = memoryview(blob.data), position

    def take(self, layout: str) -> Any:
        """The one value of a struct layout."""
        return self.many(layout)[0]

    def many(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.blob, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        return bytes(self.take(f"{self.take('Q')}s")).decode("utf-8")

    def shape(self) -> tuple[int, ...]:
        if (count := self.take("I")) > _DIMENSIONS:
            raise struct.error(f"a tensor of {count} dimensions")
        return self.many(f"{count}Q")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            value = self.take(_scalar(kind))
            return float(str(np.float32(value))) if kind == _FLOAT32 else value  # 0.22, not 0.2199999988079071
        kind, count = self.many("IQ")
        if kind == _STRING:  # a vocabulary: walk over it, nobody here wants it
            for _ in range(count):
                self.position += 8 + struct.unpack_from("<Q", self.blob, self.position)[0]
            return count
        if count <= _SHORT:
            return list(self.many(f"{count}{_scalar(kind)}"))
        self.position += count * struct.calcsize(_scalar(kind))
        if self.position > len(self.blob):
            raise struct.error(f"an array of {count} numbers, which the file is too short for")
        return count


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise struct.error(f"metadata type {kind} does not exist")
    return _SCALARS[kind]


def _parse(path: Path, cursor: _Cursor) -> Gguf:
    version, tensors, pairs = cursor.many("IQQ")
    if version not in (2, 3):
        raise Refusal(f"{path} is GGUF version {version}; versions 2 and 3 are read")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.take("I"))
    rows = [(cursor.text(), cursor.shape(), *cursor.many("IQ")) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise struct.error(f"general.alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    table: dict[str, Entry] = {}
    for name, shape, kind, offset in rows:
        table[name] = Entry(tuple(reversed(shape)), kind, start + offset, _size(prod(shape), kind, f"{path}: {name}"))
    end = max((e.offset + e.size for e in table.values()), default=start)
    if end > path.stat().st_size:
        raise Refusal(f"{path} is truncated: its tensors end at byte {end}, the file at {path.stat().st_size}")
    return Gguf(path, metadata, table)


def _size(elements: int, kind: int, where: str) -> int:
    """Bytes that `elements` values of a ggml type take."""
    if kind in _FLOATS or kind == _BF16:
        return elements * (4 if kind == 0 else 2)
    gguf = _gguf(where)
    try:
        block, size = (64, 18) if kind == _Q2_0 else gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (KeyError, ValueError) as error:
        raise Refusal(f"{where} has the ggml type {kind}, which this gguf package does not know") from error
    if elements % block:
        raise Refusal(f"{where}: {elements} numbers are no blocks of {block}; the file is damaged")
    return elements // block * size


def _decode(blob: NDArray[np.uint8], entry: Entry) -> NDArray[np.float32]:
    if entry.kind in _FLOATS:
        return blob.view(_FLOATS[entry.kind]).astype(np.float32)
    if entry.kind == _BF16:  # bfloat16 is the upper half of float32
        return (blob.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if entry.kind == _Q2_0:
        return _two_bits(blob.reshape(-1, 18))
    gguf = _gguf("this file")
    return gguf.dequantize(blob, gguf.GGMLQuantizationType(entry.kind))


def _two_bits(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """ggml-quants.c, dequantize_row_q2_0: d (u - 1), 64 pairs of bits behind an fp16 d. gguf-py 0.19 does not know it."""
    pairs = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return (pairs.reshape(len(blocks), -1).astype(np.float32) - 1) * scales


def _gguf(where: str) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise Refusal(f"{where} holds quantized blocks; to read them: pip install gguf") from error
    return gguf
