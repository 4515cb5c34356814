# SPDX-License-Identifier: Apache-2.0
"""Int8 per-token dynamic activations, rounded as XNNPACK rounds them, with a straight-through gradient.

Each token (last axis) gets its own asymmetric int8 grid from its minimum and maximum (zero included).
The arithmetic is that of XNNPACK's qd8 packing (scale as 255 / range, zero-point chosen from the end
with the smaller error), so a model trained with it meets the same rounding on the phone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from dlqat.trainer.kernels import ops, reference
from dlqat.trainer.kernels.choose import choose

fake_quant = reference.fake_quant
"""The definition, without a gradient."""


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return choose(x.device).fake_quant(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def straight_through(x: Tensor) -> Tensor:
    """fake_quant(x) with the gradient of the identity (a dynamic grid clips nothing)."""
    if torch.compiler.is_compiling():
        return ops.fake_quant(x)
    return cast("Tensor", _StraightThrough.apply(x))  # pyright: ignore[reportUnknownMemberType]
