# SPDX-License-Identifier: Apache-2.0
"""MIL operations that move numbers and compute none (coremltools' tensor_transformation, tensor_operation)."""

from __future__ import annotations

import torch
from torch import Tensor

from dlqat.mil.call import Call, Compute, Unsupported


def _shape(call: Call) -> Tensor:
    return torch.tensor(call.tensor("x").shape, dtype=torch.int32)


def _reshape(call: Call) -> Tensor:
    """0 keeps a dimension, -1 takes what is left."""
    x, shape = call.tensor("x"), call.integers("shape")
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _transpose(call: Call) -> Tensor:
    return call.tensor("x").permute(call.integers("perm"))


def _expand_dims(call: Call) -> Tensor:
    x, axes = call.tensor("x"), call.integers("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(call: Call) -> Tensor:
    x = call.tensor("x")
    axes = call.integers("axes") if call.has("axes") else [i for i, size in enumerate(x.shape) if size == 1]
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def _concat(call: Call) -> Tensor:
    if call.flag("interleave"):
        raise Unsupported("concat with interleave")
    return torch.cat(call.tensors("values"), call.integer("axis", 0))


def _split(call: Call) -> tuple[Tensor, ...]:
    x, axis = call.tensor("x"), call.integer("axis", 0)
    if call.has("split_sizes"):
        return torch.split(x, call.integers("split_sizes"), axis)
    count = call.integer("num_splits", 1)
    if x.shape[axis] % count:
        raise Unsupported(f"split of {x.shape[axis]} into {count} equal parts")
    return torch.split(x, x.shape[axis] // count, axis)


def _tile(call: Call) -> Tensor:
    return call.tensor("x").repeat(call.integers("reps"))


def _gather(call: Call) -> Tensor:
    """Slices of x along an axis; indices count from the end where negative, and must lie inside."""
    x, indices = call.tensor("x"), call.tensor("indices").long()
    if call.integer("batch_dims", 0):
        raise Unsupported("gather with batch_dims")
    axis = call.integer("axis", 0) % x.dim()
    size = x.shape[axis]
    if indices.numel() and (int(indices.min()) < -size or int(indices.max()) >= size):
        raise Unsupported(f"gather of {int(indices.max())} (or below {-size}) among {size}: undefined on a device")
    found = x.index_select(axis, (indices % size).reshape(-1))
    return found.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def _range(call: Call) -> Tensor:
    start, end, step = (call.tensor(n).reshape(()) for n in ("start", "end", "step"))
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _slice(call: Call) -> Tensor:
    x = call.tensor("x")
    found = x[region(call, x)]
    squeeze = call.flags("squeeze_mask", x.dim())
    return found.reshape([size for size, gone in zip(found.shape, squeeze, strict=True) if not gone])


def _slice_update(call: Call) -> Tensor:
    """x with a region replaced; a new tensor."""
    x = call.tensor("x").clone()
    update(call, x)
    return x


def update(call: Call, x: Tensor) -> None:
    """Write the operation's `update` into its region of x."""
    if any(call.flags("squeeze_mask", x.dim())):
        raise Unsupported("slice_update with squeeze_mask")
    x[region(call, x)] = call.tensor("update").to(x.dtype)


def region(call: Call, x: Tensor) -> tuple[slice, ...]:
    """begin, end, stride and masks of slice_by_index, as Python slices. Strides are positive."""
    n = x.dim()
    begin, end = call.integers("begin"), call.integers("end")
    stride = call.integers("stride") if call.has("stride") else [1] * n
    if min(stride, default=1) < 1:
        raise Unsupported(f"{call.kind} with a negative stride")
    first, last, squeeze = (call.flags(f"{k}_mask", n) for k in ("begin", "end", "squeeze"))
    found: list[slice] = []
    for i, size in enumerate(x.shape):
        low = 0 if first[i] else begin[i] + size * (begin[i] < 0)
        high = low + 1 if squeeze[i] else size if last[i] else end[i] + size * (end[i] < 0)
        if not 0 <= low <= high <= size:
            raise Unsupported(f"{call.kind} of {low}..{high} of {size}: undefined on a device")
        found.append(slice(low, high, stride[i]))
    return tuple(found)


OPERATIONS: dict[str, Compute] = {
    "shape": _shape,
    "reshape": _reshape,
    "transpose": _transpose,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concat": _concat,
    "split": _split,
    "tile": _tile,
    "gather": _gather,
    "range_1d": _range,
    "slice_by_index": _slice,
    "slice_update": _slice_update,
}
