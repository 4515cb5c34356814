# SPDX-License-Identifier: Apache-2.0
"""Messages between a device's driver and the process that holds the runtime: one frame each way.

    "DLQ1"  header length uint32  payload length uint64  header (JSON)  payload (arrays, raw, in order)

The header's "arrays" names each array with its dtype and shape. Little-endian. The magic catches a runtime
that prints into the stream; a worker moves its stdout away to be safe (worker.py, worker.mjs).
The same frames go through a pipe, an `adb shell`, and the stdin of Node.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEAD = struct.Struct("<4sIQ")
MAGIC = b"DLQ1"
DTYPES = ("float32", "float16", "int64", "int32", "uint8", "int8", "bool")


class Garbled(Exception):
    """Bytes that are no frame."""


@dataclass(frozen=True, eq=False)
class Message:
    """`header` as JSON values; `arrays` by name."""

    header: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])


def encode(message: Message) -> bytes:
    """The frame of a message. Garbled if an array has a dtype that does not travel."""
    arrays = {n: np.asarray(a, order="C") for n, a in message.arrays.items()}
    if odd := [f"{n} {a.dtype}" for n, a in arrays.items() if a.dtype.name not in DTYPES]:
        raise Garbled(f"arrays that do not travel: {', '.join(odd)}")
    shapes = [{"name": n, "dtype": a.dtype.name, "shape": list(a.shape)} for n, a in arrays.items()]
    header = json.dumps({**message.header, "arrays": shapes}).encode()
    payload = b"".join(a.tobytes() for a in arrays.values())
    return HEAD.pack(MAGIC, len(header), len(payload)) + header + payload


def decode(read: Callable[[int], bytes]) -> Message:
    """The next message; `read(n)` returns exactly n bytes. Garbled if these are no frame."""
    first = read(HEAD.size)
    magic, header_length, payload_length = HEAD.unpack(first)
    if magic != MAGIC:
        raise Garbled(f"expected a message, got {first!r}")
    try:
        header: dict[str, Any] = json.loads(read(header_length))
    except (ValueError, RecursionError) as error:
        raise Garbled(f"a message without a header ({error})") from error
    return with_payload(header, read(payload_length))


def with_payload(header: dict[str, Any], payload: bytes) -> Message:
    """The message of a header, whose "arrays" says what the payload holds. Garbled if it does not say."""
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), list):  # pyright: ignore[reportUnnecessaryIsInstance] # a stranger's
        raise Garbled("a message without arrays")
    shapes: Sequence[Mapping[str, Any]] = header.pop("arrays")
    arrays, at = dict[str, NDArray[Any]](), 0
    try:
        for one in shapes:
            dtype = np.dtype(DTYPES[DTYPES.index(one["dtype"])])
            if any(type(length) is not int or length < 0 for length in one["shape"]):
                raise ValueError(f"shape {one['shape']}")  # noqa: TRY301
            size = math.prod(one["shape"]) * dtype.itemsize
            arrays[one["name"]] = np.frombuffer(payload[at : at + size], dtype).reshape(one["shape"])
            at += size
    except (KeyError, TypeError, ValueError) as error:
        raise Garbled(f"arrays that its payload does not hold ({error})") from error
    return Message(header, arrays)
