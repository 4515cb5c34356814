# SPDX-License-Identifier: Apache-2.0
"""What GGUF's block types hold exactly, and their bytes (llama.cpp, ggml-common.h). A block is 32 inputs of one row.

    Q4_0   fp16 d, 32 nibbles u            w = d * (u - 8)    symmetric 2, 3 and 4 bits
    Q4_1   fp16 d, fp16 m, 32 nibbles u    w = d * u + m      zero-points, where m = s * (qmin - z) is an fp16 number
    Q5_0   fp16 d, 32 bits, 32 nibbles u   w = d * (u - 16)   symmetric 5 bits; bit i is the fifth of number i
    Q8_0   fp16 d, 32 int8 q               w = d * q          symmetric 8 bits
    Q2_0   fp16 d, 64 pairs of bits u      w = d * (u - 1)    symmetric 2 bits, with d = -s and u = 1 - q; form q2_0 only

A group of 64, 128 or a whole row repeats its scale in every block. Nibble i of a block stands in the low half of byte i,
nibble i + 16 in its high half; four pairs of bits make a byte, the first one lowest. K-quants quantize their scales, so they
hold nothing exactly. Q2_0 is llama.cpp's since July 2026 (id 42, pull request 24448); older builds do not load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized

BLOCK, WIDE_BLOCK = 32, 64
TYPES: Mapping[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4),
    "Q4_0": (2, BLOCK, 18),
    "Q4_1": (3, BLOCK, 20),
    "Q5_0": (6, BLOCK, 22),
    "Q8_0": (8, BLOCK, 34),
    "Q2_0": (42, WIDE_BLOCK, 18),
}
"""ggml's id of a type, numbers in a block, bytes of it."""
COMPOUND = (
    "llama.cpp multiplies with one matrix a layer, and this one is low-rank, clustered or a sum; "
    "train it on one grid (--method dlqat)"
)


@dataclass(frozen=True, slots=True)
class Storage:
    """`storage.Storage`. `narrow`: 2 bits in 2 bits, where the groups allow it."""

    narrow: bool = False

    def supports(self, name: str, weight: Leaf) -> str | None:
        if isinstance(weight, Tensor):
            return None
        grid, inputs = weight.grid, weight.codes.shape[1]
        if inputs % BLOCK:
            return f"{inputs} inputs are no whole blocks of {BLOCK}, which GGUF is made of"
        if grid.group_size is not None and grid.group_size % BLOCK:
            return f"{grid}: GGUF has one scale for {BLOCK} inputs; recipe: group_size = 32"
        if not torch.equal(weight.scales.half().float(), weight.scales):
            return f"{grid}: GGUF keeps scales as fp16, and these would be rounded; fold with dlqat's own scales"
        if weight.zero_points is None:
            return None
        if grid.container == 8:
            return f"{grid}: of GGUF's types with zero-points none has so many bits; recipe: symmetric = true"
        lowest = _lowest(weight)
        lost = int((lowest.half().float() != lowest).sum())
        if lost:
            return (
                f"{grid}: Q4_1 keeps a group's lowest value as fp16, and {lost} of {lowest.numel()} would be rounded; "
                "recipe: scale_bits = 7, and train again"
            )
        return None

    def describe(self, name: str, weight: Leaf) -> str:
        return self.kind(weight)

    def kind(self, weight: Leaf) -> str:
        """The type's name in ggml."""
        if isinstance(weight, Tensor):
            return "F32"
        grid, inputs = weight.grid, weight.codes.shape[1]
        if grid.container == 8:
            return "Q5_0" if grid.bits == 5 else "Q8_0"
        if weight.zero_points is not None:
            return "Q4_1"
        fits = grid.bits == 2 and (grid.group_size or inputs) % WIDE_BLOCK == 0
        return "Q2_0" if self.narrow and fits else "Q4_0"


def stored(weight: Leaf, kind: str) -> NDArray[np.generic]:
    """What stands in the file: bytes uint8 [out, bytes of a row], or float32."""
    if isinstance(weight, Tensor):
        return weight.float().contiguous().numpy()
    out, block = weight.codes.shape[0], TYPES[kind][1]
    codes, scales = weight.codes.numpy().reshape(out, -1, block), _blockwise(weight, weight.scales, block)
    match kind:
        case "Q8_0":
            parts = [scales, codes.view(np.uint8)]
        case "Q4_0":
            parts = [scales, _nibbles(codes + 8)]
        case "Q5_0":
            u = (codes + 16).view(np.uint8)
            parts = [scales, np.packbits(u >> 4, axis=-1, bitorder="little"), _nibbles(u & 15)]
        case "Q2_0":
            parts = [_blockwise(weight, -weight.scales, block), _pairs(1 - codes)]
        case _:
            parts = [scales, _blockwise(weight, _lowest(weight), block), _nibbles(codes - weight.grid.qmin)]
    return np.concatenate(parts, axis=-1).reshape(out, -1)


def _lowest(weight: Quantized) -> Tensor:
    """s * (qmin - z), the value of the lowest code of each group."""
    assert weight.zero_points is not None
    return weight.scales * (weight.grid.qmin - weight.zero_points.float())


def _blockwise(weight: Quantized, values: Tensor, block: int) -> NDArray[np.uint8]:
    """fp16 bytes [out, blocks, 2] of one number a group."""
    repeat = weight.codes.shape[1] // block // values.shape[1]
    return np.repeat(values.half().numpy(), repeat, axis=1)[..., None].view(np.uint8)


def _nibbles(values: NDArray[np.int8 | np.uint8]) -> NDArray[np.uint8]:
    u = values.astype(np.uint8)
    return u[..., : BLOCK // 2] | (u[..., BLOCK // 2 :] * np.uint8(16))


def _pairs(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    u = values.astype(np.uint8).reshape(*values.shape[:-1], -1, 4)
    return (u << np.arange(0, 8, 2, dtype=np.uint8)).sum(-1, dtype=np.uint8)
