# SPDX-License-Identifier: Apache-2.0
"""MIL operations that add many products (coremltools' linear, reduction, transformers): PyTorch's float32 BLAS."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlqat.mil.call import Call, Compute, Unsupported


def _linear(call: Call) -> Tensor:
    return F.linear(call.tensor("x"), call.tensor("weight"), call.tensor("bias") if call.has("bias") else None)


def _matmul(call: Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    x = x.transpose(-1, -2) if call.flag("transpose_x") else x
    y = y.transpose(-1, -2) if call.flag("transpose_y") else y
    return x @ y


def _softmax(call: Call) -> Tensor:
    return torch.softmax(call.tensor("x"), call.integer("axis", -1))


def _reduce(call: Call) -> Tensor:
    x = call.tensor("x")
    axes = call.integers("axes") if call.has("axes") else list(range(x.dim()))
    keep = call.flag("keep_dims")
    match call.kind:
        case "reduce_max":
            return torch.amax(x, axes, keepdim=keep)
        case "reduce_mean":
            return torch.mean(x, axes, keepdim=keep)
        case _:
            return torch.sum(x, axes, keepdim=keep)


def _attention(call: Call) -> Tensor:
    """softmax(query key^T / sqrt(size) + mask) value, as one operation: nothing is rounded inside."""
    q, k, v = (call.tensor(n) for n in ("query", "key", "value"))
    if q.shape[:-2] != k.shape[:-2]:
        raise Unsupported("scaled_dot_product_attention with heads that differ")
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if call.has("attn_mask"):
        mask = call.tensor("attn_mask")
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


OPERATIONS: dict[str, Compute] = {
    "linear": _linear,
    "matmul": _matmul,
    "softmax": _softmax,
    "reduce_max": _reduce,
    "reduce_mean": _reduce,
    "reduce_sum": _reduce,
    "scaled_dot_product_attention": _attention,
}
