# SPDX-License-Identifier: Apache-2.0
"""Int8 per-token dynamic activations, rounded as XNNPACK rounds them, with a straight-through gradient.

Each token (last axis) gets its own asymmetric int8 grid from its minimum and maximum (zero included).
The arithmetic is that of XNNPACK's qd8 packing (scale as 255 / range, zero-point chosen from the end
with the smaller error), so a model trained with it meets the same rounding on the phone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def fake_quant(x: Tensor) -> Tensor:
    """x on its per-token int8 grid, same shape and dtype; computed in float32."""
    f = x.to(torch.float32)
    low, high = f.amin(-1, keepdim=True).clamp_(max=0), f.amax(-1, keepdim=True).clamp_(min=0)
    span = high - low
    inverse = torch.where(span == 0, torch.ones_like(span), 255.0 / span)
    low, high = low * inverse, high * inverse
    # Which end is rounded exactly: XNNPACK's choice of the zero-point with the smaller error.
    zero = torch.where((low - 128.0) + (high + 127.0) > 0, -128.0 - low, 127.0 - high).clamp_(-128, 127).round_()
    # clip(round(x / s) + z, -128, 127) - z, with the integer z moved into the bounds
    q = (f * inverse).round_().clamp_(-128.0 - zero, 127.0 - zero)
    return q.div_(inverse).to(x.dtype)


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return fake_quant(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def straight_through(x: Tensor) -> Tensor:
    """fake_quant(x) with the gradient of the identity (a dynamic grid clips nothing)."""
    result: Tensor = _StraightThrough.apply(x)  # pyright: ignore[reportAssignmentType, reportUnknownMemberType]
    return result
