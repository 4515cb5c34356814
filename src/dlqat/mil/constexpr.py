# SPDX-License-Identifier: Apache-2.0
"""MIL's compressed constants, expanded once (coremltools' ops/defs/iOS18/compression.py defines them).

    constexpr_blockwise_shift_scale   scale * (data - offset); scale and offset hold for a block of data: along each
                                      axis, size(data) / size(scale) numbers in a row share one
    constexpr_lut_to_dense            lut[block of the index][index]; lut [blocks ..., levels, 1]
    constexpr_sparse_to_dense         the numbers of nonzero_data, in order, where mask is 1; 0 elsewhere
    constexpr_sparse_blockwise_shift_scale, constexpr_lut_to_sparse
                                      the first two of the numbers where a mask is 1: give the mask and them, flat

Integers are subtracted before the one multiplication, so in float32 there is one rounding, or none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlqat.mil.call import Call, Compute, Result, Unsupported


def _shift_scale(call: Call) -> Tensor:
    return _scaled(call, call.tensor("data"))


def _lut_to_dense(call: Call) -> Tensor:
    return _looked_up(call, call.tensor("indices"))


def _sparse_to_dense(call: Call) -> Tensor:
    return _scattered(call, call.tensor("nonzero_data"), call.tensor("mask"))


def _sparse_shift_scale(call: Call) -> Result:
    mask = call.tensor("data_mask")
    return mask, _scaled(call, _scattered(call, call.tensor("nonzero_data"), mask))[mask != 0]


def _lut_to_sparse(call: Call) -> Result:
    mask = call.tensor("indices_mask")
    return mask, _looked_up(call, _scattered(call, call.tensor("indices_nonzero_data"), mask))[mask != 0]


def _scaled(call: Call, data: Tensor) -> Tensor:
    """scale * (data - offset), per block."""
    scale = call.tensor("scale").to(call.dtype)
    counts = scale.shape
    blocked = _blocked(data, counts).to(call.dtype)
    if call.has("offset"):
        blocked = blocked - _spread(call.tensor("offset").to(call.dtype), counts)
    return (blocked * _spread(scale, counts)).reshape(data.shape)


def _looked_up(call: Call, indices: Tensor) -> Tensor:
    """lut[block][index]."""
    lut = call.tensor("lut")
    if call.has("vector_axis") or lut.shape[-1] != 1:
        raise Unsupported(f"{call.kind} of vectors")
    counts, levels = lut.shape[:-2], lut.shape[-2]
    blocked = _blocked(indices, counts).long()
    table = lut.reshape(*(n for c in counts for n in (c, 1)), levels).expand(*blocked.shape, levels)
    return torch.gather(table, -1, blocked[..., None]).reshape(indices.shape)


def _scattered(call: Call, values: Tensor, mask: Tensor) -> Tensor:
    """Values [count of ones in mask], in the shape of the mask."""
    kept = mask != 0
    if values.dim() != 1 or values.numel() != int(kept.sum()):
        raise Unsupported(f"{call.kind}: {list(values.shape)} values for a mask with {int(kept.sum())} ones")
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[kept] = values
    return dense


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
    "constexpr_sparse_to_dense": _sparse_to_dense,
    "constexpr_sparse_blockwise_shift_scale": _sparse_shift_scale,
    "constexpr_lut_to_sparse": _lut_to_sparse,
}
