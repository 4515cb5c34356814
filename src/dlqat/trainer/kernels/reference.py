# SPDX-License-Identifier: Apache-2.0
"""The definition: fake-quantized weight forward and backward, in plain PyTorch.

Forward (dlqat.adapter):  W' = snap(m s) (q - z),  q = clip(round(V / s) + z)
Backward, with G = dL/dW' and the straight-through estimator on round and on snap:

    dL/dm = sum over the group of  G s (q - z)
    dL/dV = G snap(m s) / s  where  qmin <= V/s + z <= qmax,  else 0
    dL/dA = (alpha/r) B^T dL/dV        dL/dB = (alpha/r) dL/dV A^T
    dL/ds = sum over the group of  G ((q - z) - [inside] (V/s - offset/64)) / sqrt(N_g qmax)      (LSQ, L4Q only;
            the offset is in steps of the grid, so it moves with s and V/s does not see it)

Codes are recomputed in the backward: between the two, nothing of the size of W exists but W0. Rows go
through in blocks that stay in cache, so the passes below cost little beside the matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlqat.adapter import OFFSET_UNIT, Adapter, folded_scales, grid_scales, latent, rows

BLOCK = 1 << 20
"""Elements of W handled at a time."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of the tensors of an Adapter, in their shapes; None where nothing is trained."""

    lora_a: Tensor | None
    lora_b: Tensor | None
    magnitude: Tensor | None
    scales: Tensor | None


@torch.no_grad()
def weight_forward(weight: Tensor, adapter: Adapter, dtype: torch.dtype) -> Tensor:
    """W' [out, in] in `dtype`, from the frozen weight and its adapter."""
    made = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for block in _blocks(weight):
        part = rows(adapter, block)
        v = _grouped(latent(weight[block], part), part).div_(grid_scales(part)[..., None])
        levels = v.round_().clamp_(*_clip(part))
        made[block] = levels.mul_(folded_scales(part)[..., None]).view(-1, weight.shape[1])
    return made


@torch.no_grad()
def weight_backward(
    weight: Tensor, adapter: Adapter, grad: Tensor, dtype: torch.dtype, train_scales: bool = False
) -> tuple[Tensor, Gradients]:
    """W' again (dL/dx needs it, and its codes are at hand) and the gradients of the adapter's tensors.

    grad = dL/dW' [out, in] in any float dtype.
    """
    made = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    grad_a = None if adapter.lora_a is None else torch.zeros_like(adapter.lora_a, dtype=torch.float32)
    grad_b = None if adapter.lora_b is None else torch.empty_like(adapter.lora_b, dtype=torch.float32)
    grad_magnitude = None if adapter.magnitude is None else torch.empty_like(adapter.magnitude)
    grad_scales = torch.empty_like(adapter.scales) if train_scales else None
    lsq = 1.0 / math.sqrt(weight.shape[1] // adapter.scales.shape[1] * max(adapter.grid.qmax, 1))
    for block in _blocks(weight):
        part = rows(adapter, block)
        scales = grid_scales(part)
        v = _grouped(latent(weight[block], part), part).div_(scales[..., None])
        low, high = _clip(part)
        clipped = v.clamp(low, high)
        inside = clipped == v
        levels = clipped.round_()
        g = _grouped(grad[block].to(torch.float32), part)
        if grad_magnitude is not None:
            grad_magnitude[block] = (g * levels).sum(-1).mul_(scales)
        if grad_scales is not None:
            still = v if part.offset is None else v - _grouped(part.offset, part) * OFFSET_UNIT
            grad_scales[block] = (g * (levels - still * inside)).sum(-1).mul_(lsq)
        if part.lora_a is not None and part.lora_b is not None and grad_a is not None and grad_b is not None:
            gv = g * inside
            if part.magnitude is not None:
                gv.mul_((folded_scales(part) / scales)[..., None])
            gv = gv.view(-1, weight.shape[1])
            grad_a.addmm_(part.lora_b.float().T, gv, alpha=adapter.scaling)
            grad_b[block] = (gv @ part.lora_a.float().T).mul_(adapter.scaling)
        made[block] = levels.mul_(folded_scales(part)[..., None]).view(-1, weight.shape[1])
    return made, Gradients(grad_a, grad_b, grad_magnitude, grad_scales)


def fake_quant(x: Tensor) -> Tensor:
    """x on its per-token int8 grid, same shape and dtype; computed in float32 (dlqat.trainer.layers.activation)."""
    f = x.to(torch.float32)
    low, high = f.amin(-1, keepdim=True).clamp_(max=0), f.amax(-1, keepdim=True).clamp_(min=0)
    span = high - low
    # A tensor over a tensor: torch takes 255.0 / span as 255 * (1 / span), rounded twice; XNNPACK divides once.
    inverse = torch.where(span == 0, torch.ones_like(span), torch.full_like(span, 255.0) / span)
    low, high = low * inverse, high * inverse
    # Which end is rounded exactly: XNNPACK's choice of the zero-point with the smaller error.
    zero = torch.where((low - 128.0) + (high + 127.0) > 0, -128.0 - low, 127.0 - high).clamp_(-128, 127).round_()
    # clip(round(x / s) + z, -128, 127) - z, with the integer z moved into the bounds
    q = (f * inverse).round_().clamp_(-128.0 - zero, 127.0 - zero)
    return q.div_(inverse).to(x.dtype)


def _blocks(weight: Tensor) -> list[slice]:
    step = max(1, BLOCK // weight.shape[1])
    return [slice(i, i + step) for i in range(0, weight.shape[0], step)]


def _grouped(tensor: Tensor, adapter: Adapter) -> Tensor:
    """[out, in] seen as [out, groups, inputs of a group]."""
    out, groups = adapter.scales.shape
    return tensor.view(out, groups, -1)


def _clip(adapter: Adapter) -> tuple[Tensor, Tensor]:
    """The range of q - z = clip(round(V / s), qmin - z, qmax - z): z is an integer, so it commutes."""
    device = adapter.scales.device
    low = torch.tensor(float(adapter.grid.qmin), device=device)
    high = torch.tensor(float(adapter.grid.qmax), device=device)
    if adapter.zero_points is None:
        return low, high
    z = adapter.zero_points[..., None].to(torch.float32)
    return low - z, high - z
