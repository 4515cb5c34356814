# SPDX-License-Identifier: Apache-2.0
"""MIL's compressed constants, expanded once (coremltools' ops/defs/iOS18/compression.py defines them).

    constexpr_blockwise_shift_scale   scale * (data - offset); scale and offset hold for a block of data: along each
                                      axis, size(data) / size(scale) numbers in a row share one
    constexpr_lut_to_dense            lut[block of the index][index]; lut [blocks ..., levels, 1]

Integers are subtracted before the one multiplication, so in float32 there is one rounding, or none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlqat.devices.mil_call import Call, Compute, Unsupported


def _shift_scale(call: Call) -> Tensor:
    data, scale = call.tensor("data"), call.tensor("scale").to(call.dtype)
    counts = scale.shape
    blocked = _blocked(data, counts).to(call.dtype)
    if call.has("offset"):
        blocked = blocked - _spread(call.tensor("offset").to(call.dtype), counts)
    return (blocked * _spread(scale, counts)).reshape(data.shape)


def _lut_to_dense(call: Call) -> Tensor:
    indices, lut = call.tensor("indices"), call.tensor("lut")
    if call.has("vector_axis") or lut.shape[-1] != 1:
        raise Unsupported("constexpr_lut_to_dense of vectors")
    counts, levels = lut.shape[:-2], lut.shape[-2]
    blocked = _blocked(indices, counts).long()
    table = lut.reshape(*(n for c in counts for n in (c, 1)), levels).expand(*blocked.shape, levels)
    return torch.gather(table, -1, blocked[..., None]).reshape(indices.shape)


def _blocked(data: Tensor, counts: Sequence[int]) -> Tensor:
    """data with every axis cut into its blocks: [count, size, count, size, ...]."""
    if len(counts) != data.dim() or any(size % count for size, count in zip(data.shape, counts, strict=True)):
        raise Unsupported(f"blocks {list(counts)} of a weight {list(data.shape)}")
    return data.reshape([n for size, count in zip(data.shape, counts, strict=True) for n in (count, size // count)])


def _spread(values: Tensor, counts: Sequence[int]) -> Tensor:
    return values.reshape([n for count in counts for n in (count, 1)])


OPERATIONS: dict[str, Compute] = {
    "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
}
