# SPDX-License-Identifier: Apache-2.0
"""The way from a base weight to where a better rounding wants it, in small integers (dlqat.adapter, `offset`)."""

from __future__ import annotations

import torch
from torch import Tensor

from dlqat.adapter import OFFSET_UNIT
from dlqat.grid import Grid


@torch.no_grad()
def offset(made: Tensor, weight: Tensor, scales: Tensor, zero_points: Tensor | None, grid: Grid) -> Tensor:
    """int8 [out, in], or int16 where a weight moves by more than two steps: from `weight` to `made` [out, in], in 1/64
    of a grid step.

    The codes of weight + offset are those of `made` (but where `made` lies on a tie, to float32).
    """
    out, groups = scales.shape
    s = scales[..., None]
    z = torch.zeros_like(s) if zero_points is None else zero_points[..., None].float()
    low, high = grid.qmin - z, grid.qmax - z
    base = weight.float().view(out, groups, -1) / s
    target = made.view(out, groups, -1) / s
    # Beyond an end of the grid the code is that end: a base already beyond it need not move.
    beyond = ((target > high) & (base > high)) | ((target < low) & (base < low))
    steps = torch.where(beyond, 0.0, (target - base) / OFFSET_UNIT).round_()
    wanted = target.round().clamp(low, high)
    # 1/64 of a step is coarse beside a tie: one more unit brings the code back.
    steps += torch.sign(wanted - (base + steps * OFFSET_UNIT).round_().clamp_(low, high))
    dtype = torch.int8 if float(steps.min()) >= -128 and float(steps.max()) <= 127 else torch.int16
    bounds = torch.iinfo(dtype)
    return steps.clamp_(bounds.min, bounds.max).to(dtype).view(out, -1)
