# SPDX-License-Identifier: Apache-2.0
"""The integer grid of a weight matrix, as a value, and the pure functions on it.

A weight w [out, in] is held as integer codes q and, for every group of `group_size` inputs of one
output row, a scale s and a zero-point z:

    q = clip(round(w / s) + z, qmin, qmax)        w ~ s * (q - z)

Codes and zero-points are *signed* everywhere, in [-2^(b-1), 2^(b-1) - 1], symmetric or not: that is
two's complement INT4 of ONNX and Core ML and the convention of compressed-tensors. A symmetric grid
has z = 0 and uses the level -2^(b-1) too.

`snap` is what makes a scale the same number on every runtime: 8 significant bits inside fp16's normal
range is exact in fp32, in bf16 (XNNPACK stores group scales as bf16) and in fp16 (Core ML, GGUF).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

SNAP_MIN = 2.0**-14  # fp16's smallest normal number
SIGNIFICANT = (7, 8)

BITS = (2, 3, 4, 5, 8)
GROUP_SIZES = (16, 32, 64, 128)


def largest(bits: int) -> float:
    """The largest number of so many significant bits that fp16 holds."""
    return (2.0**bits - 1) * 2.0 ** (16 - bits)


SNAP_MAX = largest(8)


@dataclass(frozen=True, slots=True)
class Grid:
    """Bits, group size (inputs that share one scale; None: a whole output row) and symmetry.

    `power_of_two` restricts scales to 2^k; an int8 code times 2^k is exact in bf16, which is how the
    embedding is stored (docs/adr/0002-embedding-grid.md).

    `mirrored` (3 bits): a symmetric grid has one level more below zero than above, and each group may have it on the
    side where its weights need it: codes -4..3 or -3..4. While a layer trains the second is a zero-point of -1; it
    folds into codes of int4, where most targets store 3 bits anyway.

    `scale_bits`: significant bits of a scale. With 7 the lowest value of a group, s (qmin - z), of 4 bits has 11 at most,
    which is what fp16 holds: so GGUF's Q4_1 and MLX's float16 take zero-points.
    """

    bits: int = 4
    group_size: int | None = 32
    symmetric: bool = True
    power_of_two: bool = False
    mirrored: bool = False
    scale_bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits = {self.bits} is not one of {BITS}")
        if self.mirrored and (self.bits != 3 or not self.symmetric):
            raise ValueError(
                "only symmetric 3 bits can be mirrored: 4 and more need it less, 2 have a type of their own"
            )
        if self.scale_bits not in SIGNIFICANT:
            raise ValueError(f"scale_bits = {self.scale_bits} is not one of {SIGNIFICANT}")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size = {self.group_size} is not one of {GROUP_SIZES} or per channel")

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def zero_points(self) -> bool:
        """Whether a layer has zero-points while it trains."""
        return self.mirrored or not self.symmetric

    @property
    def container(self) -> int:
        """Bits of the smallest whole type that has its codes, where a runtime has 2, 4 and 8."""
        return next(width for width in (2, 4, 8) if self.bits <= width)

    @property
    def folded(self) -> Grid:
        """The grid of the codes that ship: scales of 7 bits are scales of 8."""
        bits = 4 if self.mirrored else self.bits
        return Grid(bits, self.group_size, self.symmetric, self.power_of_two)

    def groups(self, in_features: int) -> int:
        """How many groups one row of `in_features` has. ValueError if the group does not divide it."""
        if (reason := self.refuses(in_features)) is not None:
            raise ValueError(reason)
        return 1 if self.group_size is None else in_features // self.group_size

    def refuses(self, in_features: int) -> str | None:
        """Why a row of `in_features` cannot lie on this grid, or None."""
        if self.group_size is None or in_features % self.group_size == 0:
            return None
        fits = [str(g) for g in GROUP_SIZES if in_features % g == 0]
        return (
            f"group_size {self.group_size} does not divide its {in_features} inputs; "
            f"use {', '.join([*fits, 'per channel'])}"
        )

    def round_scales(self, scales: Tensor) -> Tensor:
        """The nearest scales that this grid may have (float32, same shape)."""
        return power_of_two(scales) if self.power_of_two else snap(scales, self.scale_bits)

    def __str__(self) -> str:
        group = "per channel" if self.group_size is None else f"g{self.group_size}"
        return f"int{self.bits} {'mirrored' if self.mirrored else 'sym' if self.symmetric else 'asym'} {group}"


def as_json(spec: Any) -> dict[str, Any]:
    """The fields of a Grid or a LayerSpec. Without scale_bits where it is 8: folders are then those of before there was a
    choice, which an older dlqat reads."""
    found = asdict(spec)
    if found["scale_bits"] == 8:
        del found["scale_bits"]
    return found


def snap(x: Tensor, bits: int = 8) -> Tensor:
    """The nearest float32 with 8 significant bits, or 7, inside fp16's normal range (ties to even)."""
    if bits == 8:
        return x.to(torch.bfloat16).to(torch.float32).clamp(SNAP_MIN, SNAP_MAX)
    mantissa, exponent = torch.frexp(x.to(torch.float32))
    rounded = torch.ldexp(torch.round(mantissa * 2**bits), exponent - bits)
    return rounded.clamp(SNAP_MIN, largest(bits))


def power_of_two(x: Tensor) -> Tensor:
    """The smallest power of two >= x inside fp16's normal range: a scale rounded up clips nothing."""
    mantissa, exponent = torch.frexp(x.to(torch.float32))
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.ldexp(torch.ones_like(mantissa), exponent.clamp(-14, 15))


def quantize(weight: Tensor, scales: Tensor, zero_points: Tensor | None, grid: Grid) -> Tensor:
    """Codes int8 [out, in] of weight [out, in] under scales and zero_points [out, groups]."""
    out, groups = scales.shape
    v = weight.to(torch.float32).reshape(out, groups, -1) / scales[..., None]
    q = v.round_()
    if zero_points is not None:
        q += zero_points[..., None]
    return q.clamp_(grid.qmin, grid.qmax).to(torch.int8).reshape(weight.shape)


def dequantize(codes: Tensor, scales: Tensor, zero_points: Tensor | None) -> Tensor:
    """scales * (codes - zero_points) as float32 [out, in]: the weight that every runtime must hold."""
    out, groups = scales.shape
    q = codes.reshape(out, groups, -1).to(torch.float32)
    if zero_points is not None:
        q -= zero_points[..., None]
    return (q * scales[..., None]).reshape(codes.shape)
