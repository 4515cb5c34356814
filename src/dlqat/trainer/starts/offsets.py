# SPDX-License-Identifier: Apache-2.0
"""Offsets of a prepared model: the way from a base weight to where a better rounding wants it (dlqat.adapter)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlqat.adapter import Adapter, base, fixed_point, latent
from dlqat.trainer.layers.qat import QATLinear
from dlqat.trainer.rounding.gptq import compensate
from dlqat.trainer.rounding.offset import offset


@torch.no_grad()
def gptq(layer: QATLinear, moments: Tensor) -> None:
    """Bring a layer to where GPTQ rounds it. moments: X^T X [in, in] of what it reads."""
    made, scales, zero_points = compensate(layer.weight, moments, layer.spec.grid)
    layer.scales.copy_(scales)
    if layer.zero_points is not None and zero_points is not None:
        layer.zero_points.copy_(zero_points)
    layer.offset = offset(made, layer.weight, scales, zero_points, layer.spec.grid)


@torch.no_grad()
def onto_base(model: nn.Module) -> None:
    """Let every offset that leads from a float weight lead to the same place from the base of one byte that will take
    the weight's place (`base_bits`): else it ends up to half a unit of that base beside it, and codes change."""
    for layer in model.modules():
        if isinstance(layer, QATLinear) and layer.spec.base_bits and layer.offset is not None:
            grid, weight = layer.spec.grid, layer.weight
            wanted = latent(weight, Adapter(grid, layer.scales, layer.zero_points, offset=layer.offset))
            kept = base(fixed_point(weight, layer.scales, grid), layer.adapter())
            layer.offset = offset(wanted, kept, layer.scales, layer.zero_points, grid)
