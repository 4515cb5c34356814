# SPDX-License-Identifier: Apache-2.0
"""Blocks as ggml defines them (ggml-quants.c, dequantize_row_*), as integers of a grid.

Q4_0   d (u - 8)                     codes u - 8
Q5_0   d (u - 16)                    codes u - 16
Q8_0   d q                           codes q
Q4_1   d u + m = d (u - z), z = -m / d, which must be a whole number
Q2_0   d (u - 1)                     codes 1 - u of the scale -d, for our 2 bits reach from -2 to 1; blocks of 64
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Integers, Unreadable
from dlqat.runtime_tests.readers.gguf.file import BLOCKS

BLOCK = 32
Q4_0, Q4_1, Q5_0, Q8_0, Q2_0 = 2, 3, 6, 8, 42
OF_A_GRID = (Q4_0, Q4_1, Q5_0, Q8_0, Q2_0)


def integers(kind: int, content: NDArray[np.uint8], shape: tuple[int, ...], name: str) -> Integers:
    """Codes, scales and zero-points of a tensor's bytes."""
    block = BLOCKS[kind][0]
    blocks = content.reshape(shape[0], shape[1] // block, -1)
    scales = _halves(blocks, 0)
    match kind:
        case 42:
            pairs = blocks[..., 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
            return Integers(1 - pairs.astype(np.int8).reshape(shape), -scales, None, block)
        case 8:
            codes = blocks[..., 2:].view(np.int8)
            return Integers(codes.reshape(shape), scales, None, BLOCK)
        case 6:
            fifth = np.unpackbits(np.ascontiguousarray(blocks[..., 2:6]), axis=-1, bitorder="little")
            codes = (_nibbles(blocks[..., 6:]) | fifth << np.uint8(4)).astype(np.int8) - 16
            return Integers(codes.reshape(shape), scales, None, BLOCK)
        case 2:
            codes = _nibbles(blocks[..., 2:]).astype(np.int8) - 8
            return Integers(codes.reshape(shape), scales, None, BLOCK)
        case _:
            return _with_zero_points(blocks, scales, shape, name)


def _with_zero_points(
    blocks: NDArray[np.uint8], scales: NDArray[np.float32], shape: tuple[int, ...], name: str
) -> Integers:
    """Signed in as many bits as the nibbles need: 0..3 stand for -2..1, 0..7 for -4..3, else 0..15 for -8..7."""
    u = _nibbles(blocks[..., 4:]).astype(np.int64)
    half = next(h for h in (2, 4, 8) if int(u.max(initial=0)) < 2 * h)
    exact = -_halves(blocks, 2).astype(np.float64) / scales
    zero = np.rint(exact)
    if not np.array_equal(zero, exact) or zero.min() < 0 or zero.max() >= 2 * half:
        raise Unreadable(f"{name}: a block's lowest value is no whole number of steps")
    return Integers((u - half).astype(np.int8).reshape(shape), scales, (zero - half).astype(np.int8), BLOCK)


def floats(kind: int, content: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """F32, F16 or BF16."""
    if kind == 30:  # the upper half of a float32
        return (content.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return content.view("<f4" if kind == 0 else "<f2").astype(np.float32).reshape(shape)


def _halves(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([content % np.uint8(16), content // np.uint8(16)], axis=-1)
