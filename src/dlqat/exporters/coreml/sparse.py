# SPDX-License-Identifier: Apache-2.0
"""A pruned weight in a MIL program: one bit a weight says where it is not zero, and only those have codes.

    integers  constexpr_sparse_blockwise_shift_scale   mask uint1 [out, in], the codes that are left as int4 (8 bit:
              -> constexpr_sparse_to_dense             int8; with zero-points uint4 = code + 8), scale float16 [out,
                                                       groups]; a zero is a code that equals its zero-point
    signs     constexpr_lut_to_sparse                  codes -1 and 1 as uint1, the table int8 [out, groups, 2, 1]
              -> constexpr_sparse_to_dense             of -1 and 1, times the scale per group

Both orders are those that coremltools writes for pruned and quantized, and for pruned and palettized weights. Taken
where at least half of a weight is zero *and* the bytes get fewer: 2:4 at 4 bits has 1 + 4 / 2 bits instead of 4, but
2:4 at 2 bits 1 + 2 instead of 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dlqat.exporters.coreml import weights as dense
from dlqat.exporters.coreml.tools import mapped, mb
from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized


def pays(weight: Leaf, target: str) -> bool:
    """Whether `weight` is half zeros or more, and smaller this way than in full."""
    if isinstance(weight, Tensor):
        return False
    kept = int(_kept(weight).count_nonzero())  # a sum of bools makes int64 of each
    return 2 * kept <= weight.codes.numel() and bits(weight, kept) < dense.bits(weight, target)


def bits(weight: Quantized, kept: int) -> int:
    """Bits of the whole weight stored this way, `kept` of its codes being left."""
    groups, width = weight.scales.numel(), max(4, weight.grid.container)
    if _signs(weight):
        return weight.codes.numel() + kept + groups * (16 + 2 * 8)
    return weight.codes.numel() + kept * width + groups * (16 + (0 if weight.zero_points is None else width))


def describe(weight: Quantized) -> str:
    """What `emit` makes of it, for people."""
    if _signs(weight):
        return "sparse: uint1 mask, uint1 lut_to_sparse"
    zeros = " with offset" if weight.zero_points is not None else ""
    return f"sparse: uint1 mask, {dense.kind_of(weight)} blockwise_shift_scale{zeros}"


def emit(name: str, weight: Quantized) -> Any:
    """The weight [out, in] as a constant expression named `name`, float16 to those that use it."""
    kept = _kept(weight).numpy()
    mask, left = mapped(kept.astype(dense.TYPES["uint1"])), weight.codes.numpy()[kept]
    scales = mapped(weight.scales.numpy().astype(np.float16))
    if _signs(weight):
        table = mapped(np.broadcast_to(np.array([-1, 1], np.int8)[:, None], (*scales.shape, 2, 1)).copy())
        scaled = mb.constexpr_blockwise_shift_scale(data=table, scale=scales[..., None, None], name=f"{name}_table")
        indices = mapped((left > 0).astype(np.int8).astype(dense.TYPES["uint1"]))
        where, values = mb.constexpr_lut_to_sparse(
            indices_mask=mask, indices_nonzero_data=indices, lut=scaled, name=f"{name}_left"
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where, name=name)
    kind = dense.kind_of(weight)
    shift, given = np.int8(8 if kind == "uint4" else 0), {}
    if weight.zero_points is not None:
        given["offset"] = (weight.zero_points.numpy() + shift).astype(dense.TYPES[kind])
    codes = mapped((left + shift).astype(dense.TYPES[kind]))
    where, values = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=mask, nonzero_data=codes, scale=scales, **given, name=f"{name}_left"
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where, name=name)


def _kept(weight: Quantized) -> Tensor:
    """bool [out, in]: where the weight is not zero."""
    if weight.zero_points is None:
        return weight.codes != 0
    codes = weight.codes.view(*weight.zero_points.shape, -1)
    return (codes != weight.zero_points[..., None]).view(weight.codes.shape)


def _signs(weight: Quantized) -> bool:
    return weight.zero_points is None and int(weight.codes.abs().max()) <= 1
