# SPDX-License-Identifier: Apache-2.0
"""How a weight stands in a MIL program: our codes, scales and zero-points verbatim, in the smallest type that has them.

    5, 8 bit      constexpr_blockwise_shift_scale   data int8, offset int8 where the grid has zero-points
    4 bit         constexpr_blockwise_shift_scale   data int4; with zero-points data uint4 = code + 8, offset uint4
                                                    also 3 bits where that is smaller: below iOS26 in groups under 64
    3, 2 bit      constexpr_lut_to_dense            indices uint3 or uint2 = code + 2^(bits-1), packed to 3 or 2 bits
                  iOS18   the table int8 [out, groups, levels, 1] of level - 2^(bits-1) - zero, times the scale per
                          group: coremltools rewrites the other order into this one below iOS26
                  iOS26   one table 0 .. levels-1 for the whole weight, then blockwise_shift_scale with scale, offset
    float         float16 where it is exact, else float32: `exact`

scale is float16 [out, groups], which is what dlqat.grid.snap made of it. A scale that float16 does not have, or a
product that overflows it, is refused. Pruned weights have an order of their own: sparse.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil.types import type_int
from numpy.typing import NDArray
from torch import Tensor

from dlqat.exporters.coreml.tools import mapped, mb
from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized

TYPES: dict[str, Any] = {
    "int8": np.int8,
    "uint8": np.uint8,
    **{name: getattr(type_int, f"np_{name}_dtype") for name in ("int4", "uint4", "uint3", "uint2", "uint1")},
}
LARGEST = 65504.0
COMPACT = "iOS26"
"""The deployment target from which one table can serve a whole weight."""


def exact(values: Tensor) -> bool:
    """Whether float16 has every one of these numbers."""
    return bool(torch.equal(values.half().float(), values.float()))


def unsupported(weight: Leaf) -> str | None:
    """Why float16 scales cannot carry `weight`, or None. Float weights always can: float32 if need be."""
    if isinstance(weight, Tensor):
        return None
    if not exact(weight.scales):
        return "a scale is no float16 number, and Core ML holds scales in float16; fold on a grid with snapped scales"
    largest = 2.0**weight.grid.bits * float(weight.scales.max())
    if largest > LARGEST and float(_levels(weight).abs().max()) > LARGEST:
        return f"scale * (code - zero) exceeds {LARGEST:.0f}, the largest float16"
    return None


def describe(weight: Leaf, target: str) -> str:
    """What `emit` makes of it, for people."""
    if isinstance(weight, Tensor):
        return "float16" if exact(weight) else "float32 (not exact in float16), computed in float32"
    zeros = " with offset" if weight.zero_points is not None else ""
    if _looked_up(weight, target):
        return f"uint{weight.grid.bits} lut_to_dense{zeros}"
    return f"{kind_of(weight)} blockwise_shift_scale{zeros}"


def bits(weight: Quantized, target: str) -> int:
    """Bits that `emit` stores for the whole weight."""
    return _lookup_bits(weight, target) if _looked_up(weight, target) else _plain_bits(weight)


def emit(name: str, weight: Quantized, target: str) -> Any:
    """The weight [out, in] as a constant expression named `name`, float16 to those that use it."""
    scales = mapped(weight.scales.numpy().astype(np.float16))
    if not _looked_up(weight, target):
        return _shift_scale(name, weight, scales)
    half, levels = 1 << (weight.grid.bits - 1), 1 << weight.grid.bits
    indices = mapped((weight.codes.numpy() + np.int8(half)).astype(TYPES[f"uint{weight.grid.bits}"]))
    zeros = np.zeros(scales.shape, np.int8) if weight.zero_points is None else weight.zero_points.numpy()
    if target == COMPACT:
        table = np.arange(levels, dtype=np.uint8).reshape(1, 1, levels, 1)
        codes = mb.constexpr_lut_to_dense(indices=indices, lut=table, name=f"{name}_codes")
        offset = (zeros + np.int8(half)).astype(np.uint8)
        return mb.constexpr_blockwise_shift_scale(data=codes, scale=scales, offset=offset, name=name)
    table = mapped((np.arange(-half, half, dtype=np.int8) - zeros[..., None])[..., None])
    scaled = mb.constexpr_blockwise_shift_scale(data=table, scale=scales[..., None, None], name=f"{name}_table")
    return mb.constexpr_lut_to_dense(indices=indices, lut=scaled, name=name)


def constant(name: str, values: NDArray[Any]) -> Any:
    """Numbers under a name."""
    return mb.const(val=mapped(values), name=name)


def _shift_scale(name: str, weight: Quantized, scales: NDArray[np.float16]) -> Any:
    kind, codes = kind_of(weight), weight.codes.numpy()
    if weight.zero_points is None:
        return mb.constexpr_blockwise_shift_scale(data=mapped(codes.astype(TYPES[kind])), scale=scales, name=name)
    shift, zeros = np.int8(8 if kind == "uint4" else 0), weight.zero_points.numpy()
    data, offset = (mapped((x + shift).astype(TYPES[kind])) for x in (codes, zeros))
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scales, offset=offset, name=name)


def _looked_up(weight: Quantized, target: str) -> bool:
    """Whether 2 or 3 bits stand as such with a table, or in 4 bits, which need none."""
    return weight.grid.bits < 4 and _lookup_bits(weight, target) <= _plain_bits(weight)


def _lookup_bits(weight: Quantized, target: str) -> int:
    beside = 8 if target == COMPACT else 8 << weight.grid.bits
    return weight.codes.numel() * weight.grid.bits + weight.scales.numel() * (16 + beside)


def _plain_bits(weight: Quantized) -> int:
    width = max(4, weight.grid.container)
    return weight.codes.numel() * width + weight.scales.numel() * (16 + (0 if weight.zero_points is None else width))


def kind_of(weight: Quantized) -> str:
    """The type of its codes where it has 4 bits or more, or is sparse."""
    if weight.grid.container == 8:
        return "int8"
    return "int4" if weight.zero_points is None else "uint4"


def _levels(weight: Quantized) -> Tensor:
    """scale * (code - zero) of the extreme codes of every group."""
    codes = weight.codes.float().reshape(*weight.scales.shape, -1)
    zeros = 0.0 if weight.zero_points is None else weight.zero_points.float()
    return torch.stack([weight.scales * (codes.amin(-1) - zeros), weight.scales * (codes.amax(-1) - zeros)])
