# SPDX-License-Identifier: Apache-2.0
"""What GGUF's block types hold exactly, and their bytes (llama.cpp, ggml-common.h). A block is 32 inputs of one row.

    Q4_0   fp16 d, 32 nibbles u            w = d * (u - 8)    symmetric 2, 3 and 4 bits
    Q4_1   fp16 d, fp16 m, 32 nibbles u    w = d * u + m      zero-points, where m = s * (qmin - z) is an fp16 number
    Q8_0   fp16 d, 32 int8 q               w = d * q          symmetric 8 bits

A group of 64, 128 or a whole row repeats its scale in every block. Nibble i of a block stands in the low half of byte i,
nibble i + 16 in its high half. K-quants quantize their scales, so they hold nothing exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized

BLOCK = 32
COMPOUND = (
    "llama.cpp multiplies with one matrix a layer, and this one is low-rank, clustered or a sum; "
    "train it on one grid (--method dlqat)"
)


class Storage:
    """`storage.Storage`."""

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
        if grid.bits == 8:
            return f"{grid}: no GGUF type has 8 bits and zero-points; recipe: symmetric = true"
        lowest = _lowest(weight)
        lost = int((lowest.half().float() != lowest).sum())
        if lost:
            return (
                f"{grid}: Q4_1 keeps a group's lowest value as fp16, and {lost} of {lowest.numel()} would be rounded; "
                "recipe: symmetric = true, or bits = 3"
            )
        return None

    def describe(self, name: str, weight: Leaf) -> str:
        return kind(weight)


def kind(weight: Leaf) -> str:
    """The type's name in ggml."""
    if isinstance(weight, Tensor):
        return "F32"
    if weight.grid.bits == 8:
        return "Q8_0"
    return "Q4_0" if weight.zero_points is None else "Q4_1"


def stored(weight: Leaf) -> NDArray[np.generic]:
    """What stands in the file: bytes uint8 [out, bytes of a row], or float32."""
    if isinstance(weight, Tensor):
        return weight.float().contiguous().numpy()
    out = weight.codes.shape[0]
    codes, scales = weight.codes.numpy().reshape(out, -1, BLOCK), _blockwise(weight, weight.scales)
    if weight.grid.bits == 8:
        parts = [scales, codes.view(np.uint8)]
    elif weight.zero_points is None:
        parts = [scales, _nibbles(codes + 8)]
    else:
        parts = [scales, _blockwise(weight, _lowest(weight)), _nibbles(codes - weight.grid.qmin)]
    return np.concatenate(parts, axis=-1).reshape(out, -1)


def _lowest(weight: Quantized) -> Tensor:
    """s * (qmin - z), the value of the lowest code of each group."""
    assert weight.zero_points is not None
    return weight.scales * (weight.grid.qmin - weight.zero_points.float())


def _blockwise(weight: Quantized, values: Tensor) -> NDArray[np.uint8]:
    """fp16 bytes [out, blocks, 2] of one number a group."""
    repeat = weight.codes.shape[1] // BLOCK // values.shape[1]
    return np.repeat(values.half().numpy(), repeat, axis=1)[..., None].view(np.uint8)


def _nibbles(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    u = values.astype(np.uint8)
    return u[..., : BLOCK // 2] | (u[..., BLOCK // 2 :] * np.uint8(16))
