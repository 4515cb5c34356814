# SPDX-License-Identifier: Apache-2.0
"""MLX's affine grid: w = scales * u + biases, u unsigned in 2, 3, 4, 5 or 8 bits, a bit stream along the inputs in uint32.

    symmetric          biases = -2^(bits-1) * s: a shift of s, exact in float32, float16 and bfloat16
    mirrored 3 bits    biases = -4s or -3s: 10 bits, which bfloat16 has not; 3 bits in the file, though folded/ has int4
    zero-points        biases = s * (qmin - z): up to 16 bits, float32

A row with one scale repeats it in groups of 128, 64 or 32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized
from dlqat.tensor_writer import blocks

GROUPS = (128, 64, 32)
COMPOUND = (
    "mlx-lm multiplies with one matrix a layer, and this one is low-rank, clustered or a sum; "
    "train it on one grid (--method dlqat)"
)


@dataclass(frozen=True, slots=True)
class Storage:
    """`storage.Storage` in files of one float type."""

    dtype: torch.dtype

    def supports(self, name: str, weight: Leaf) -> str | None:
        if isinstance(weight, Tensor):
            return rounded(weight, self.dtype)
        grid, inputs = weight.grid, weight.codes.shape[1]
        if group(weight) is None:
            return f"{grid}: MLX has groups of 32, 64 and 128, and {inputs} inputs have none; recipe: group_size = 32"
        if (reason := rounded(weight.scales, self.dtype)) is not None:
            return f"{grid}: scales, {reason}"
        _, biases = affine(weight)
        return None if (reason := rounded(biases, self.dtype)) is None else f"{grid}: lowest values, {reason}"

    def describe(self, name: str, weight: Leaf) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return (
            kind if isinstance(weight, Tensor) else f"{bits(weight)} bits in groups of {group(weight)}, {kind} scales"
        )


def rounded(values: Tensor, dtype: torch.dtype) -> str | None:
    """Why a float type does not hold `values`, or None."""
    lost = int((values.to(dtype).float() != values.float()).sum())
    if not lost:
        return None
    return f"{lost} of {values.numel()} numbers would be rounded to {str(dtype).removeprefix('torch.')}; use --form float32"


def group(weight: Quantized) -> int | None:
    """Inputs that share a scale in the file; None if MLX has no such group."""
    own, inputs = weight.grid.group_size, weight.codes.shape[1]
    if own is not None:
        return own if own in GROUPS else None
    return next((g for g in GROUPS if inputs % g == 0), None)


def bits(weight: Quantized) -> int:
    return 3 if _mirrored(weight) is not None else weight.grid.bits


def affine(weight: Quantized) -> tuple[Tensor, Tensor]:
    """(the code that u = 0 stands for, biases) float32 [out, groups], in the groups of folded/."""
    lowest = torch.full_like(weight.scales, weight.grid.qmin)
    if (mirrored := _mirrored(weight)) is not None:
        return mirrored, weight.scales * mirrored
    if weight.zero_points is None:
        return lowest, weight.scales * lowest
    return lowest, weight.scales * (lowest - weight.zero_points)


def packed(weight: Quantized, first: Tensor) -> Tensor:
    """uint32 [out, in * bits / 32]: the bits of a row, one code after the other, the lowest first. A bit takes a byte on the
    way, so some rows at a time."""
    (out, inputs), width = weight.codes.shape, bits(weight)
    words = torch.empty(out, inputs * width // 32, dtype=torch.int32)
    for block in blocks(out, inputs):
        codes = weight.codes[block].short().unflatten(1, (first.shape[1], -1)) - first[block].short()[..., None]
        u = codes.flatten(1).to(torch.uint8).numpy()
        stream = np.unpackbits(u[..., None], axis=-1, count=width, bitorder="little").reshape(len(u), -1)
        words[block] = torch.from_numpy(np.packbits(stream, axis=1, bitorder="little").view(np.int32))
    return words.view(torch.uint32)


def tensors(weight: Quantized, dtype: torch.dtype) -> dict[str, Tensor]:
    """suffix -> what stands in the file."""
    first, biases = affine(weight)
    size = group(weight)
    assert size is not None
    repeat = weight.codes.shape[1] // size // first.shape[1]
    wide = (x.repeat_interleave(repeat, 1).to(dtype).contiguous() for x in (weight.scales, biases))
    return dict(zip(("weight", "scales", "biases"), (packed(weight, first), *wide), strict=True))


def _mirrored(weight: Quantized) -> Tensor | None:
    """The lowest code of each group where every group fits into 3 bits, as -4..3 or -3..4; None elsewhere."""
    grid = weight.grid
    if not grid.symmetric or grid.group_size is None or grid.bits not in (3, 4):
        return None
    groups = weight.codes.unflatten(1, (weight.scales.shape[1], -1))
    low, high = groups.amin(-1), groups.amax(-1)
    up, down = (low >= -3) & (high <= 4), (low >= -4) & (high <= 3)
    if not bool((up | down).all()):
        return None
    return torch.where(down, -4.0, -3.0)
