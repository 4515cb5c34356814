# SPDX-License-Identifier: Apache-2.0
"""weight.bin of a Core ML package: the tensors of a program, one blob each (format: coremltools' MILBlob v2).

    file   u32 number of blobs, u32 version 2, zeros up to 64 bytes
    blob   at a multiple of 64:  u32 0xDEADBEEF, u32 type, u64 bytes, u64 offset of the data, u64 padding bits,
           zeros up to 64 bytes; the data at a multiple of 64

Integers below 8 bits are a stream of bits, the lowest first: a 3-bit number may lie across two bytes. The padding
bits are those of the last byte that belong to no number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER, BLOB, SENTINEL, ALIGN = struct.Struct("<II"), struct.Struct("<IIQQQ"), 0xDEADBEEF, 64
TYPES: dict[int, str] = {
    1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1", 10: "uint2",
    11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip
NUMPY: dict[str, Any] = {
    "fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "bool": np.bool_, "int8": np.int8, "uint8": np.uint8,
    "int16": np.int16, "uint16": np.uint16, "int32": np.int32, "uint32": np.uint32, "int64": np.int64,
}  # fmt: skip
NARROW = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}


class Damaged(Exception):
    """Bytes that are missing or make no sense. One line."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Where one tensor lies: `size` bytes at `start`, `count` numbers of type `kind`."""

    kind: str
    start: int
    size: int
    count: int


class Blobs:
    """The file, mapped and not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        if len(self.bytes) < ALIGN:
            raise Damaged(f"{path.name} has {len(self.bytes)} bytes; it is truncated")
        self.count, version = HEADER.unpack_from(self.bytes[: HEADER.size].tobytes())
        if version != 2:
            raise Damaged(f"{path.name} has version {version} of the blob format; known: 2")

    def blob(self, offset: int) -> Blob:
        """The blob whose description stands at `offset`."""
        if offset % ALIGN or offset + BLOB.size > len(self.bytes):
            raise Damaged(
                f"{self.path.name}: no tensor begins at byte {offset} of {len(self.bytes)}; it is truncated or damaged"
            )
        sentinel, kind, size, start, padding = BLOB.unpack(self.bytes[offset : offset + BLOB.size].tobytes())
        if sentinel != SENTINEL or kind not in TYPES:
            raise Damaged(f"{self.path.name}: the bytes at {offset} describe no tensor")
        if start + size > len(self.bytes):
            raise Damaged(
                f"{self.path.name}: bytes {start}..{start + size} of a tensor, but the file ends at {len(self.bytes)}; "
                "it is truncated"
            )
        bits = NARROW.get(TYPES[kind]) or 8 * np.dtype(NUMPY[TYPES[kind]]).itemsize
        return Blob(TYPES[kind], start, size, (8 * size - padding) // bits)

    def offsets(self) -> Iterator[int]:
        """Where each blob is described, walking from one to the next."""
        at = ALIGN
        for _ in range(self.count):
            yield at
            blob = self.blob(at)
            at = -(-(blob.start + blob.size) // ALIGN) * ALIGN

    def read(self, offset: int) -> NDArray[Any]:
        """The numbers of the blob described at `offset`, flat; int4 as int8, uint2 to uint6 as uint8."""
        blob = self.blob(offset)
        return numbers(self.bytes[blob.start : blob.start + blob.size], blob.kind, blob.count)


def numbers(content: NDArray[np.uint8], kind: str, count: int) -> NDArray[Any]:
    """`count` numbers of type `kind` out of bytes."""
    if kind in NARROW:
        values = unpack(content, NARROW[kind], count)
        return (values ^ 8).view(np.int8) - np.int8(8) if kind == "int4" else values
    if content.size != count * np.dtype(NUMPY[kind]).itemsize:
        raise Damaged(f"{content.size} bytes are not {count} numbers of {kind}")
    return content.view(NUMPY[kind])


def unpack(content: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """`count` unsigned numbers of `bits` bits, the lowest bit first."""
    if 8 * content.size < bits * count:
        raise Damaged(f"{content.size} bytes hold no {count} numbers of {bits} bits")
    if 8 % bits == 0:
        out = np.empty((content.size, 8 // bits), np.uint8)
        for i in range(8 // bits):
            out[:, i] = (content >> (bits * i)) & ((1 << bits) - 1)
        return out.reshape(-1)[:count]
    whole = np.zeros(-(-content.size // bits) * bits, np.uint8)  # 3 bytes are 8 numbers of 3 bits
    whole[: content.size] = content
    groups = whole.reshape(-1, bits).astype(np.uint64)
    word = sum((groups[:, i] << np.uint64(8 * i) for i in range(1, bits)), groups[:, 0])
    mask = np.uint64((1 << bits) - 1)
    out = np.stack([(word >> np.uint64(bits * i)) & mask for i in range(8)], axis=-1)
    return out.astype(np.uint8).reshape(-1)[:count]


def write(source: Blobs, offsets: list[int]) -> tuple[bytes, dict[int, int]]:
    """A file with some blobs of another, and where each of them is described now."""
    out, moved = bytearray(HEADER.pack(len(offsets), 2).ljust(ALIGN, b"\0")), dict[int, int]()
    for offset in offsets:
        moved[offset] = len(out)
        sentinel, kind, size, start, padding = BLOB.unpack(source.bytes[offset : offset + BLOB.size].tobytes())
        out += BLOB.pack(sentinel, kind, size, len(out) + ALIGN, padding).ljust(ALIGN, b"\0")
        out += source.bytes[start : start + size].tobytes()
        out += bytes(-len(out) % ALIGN)
    return bytes(out), moved
