# SPDX-License-Identifier: Apache-2.0
"""Offsets of a prepared model: the way from a base weight to where a better rounding wants it (dlqat.adapter)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlqat.adapter import Adapter, base, fixed_point, latent
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.trainer.calibrate import head_moments
from dlqat.trainer.layers.prepare import put_offset, tied_head
from dlqat.trainer.layers.qat import QATLayer, QATLinear
from dlqat.trainer.rounding.gptq import compensate
from dlqat.trainer.rounding.offset import offset


@torch.no_grad()
def gptq(layer: QATLayer, moments: Tensor) -> Tensor:
    """Bring a layer's scales to where GPTQ rounds it; its offset. moments: X^T X [in, in] of what it reads.

    Some rows at a time, of which none knows of the others: an embedding has hundreds of thousands.
    """
    grid, found = layer.spec.grid, list[Tensor]()
    for start in range(0, len(layer.weight), ROWS):
        part = slice(start, start + ROWS)
        made, scales, zero_points = compensate(layer.weight[part], moments, grid)
        layer.scales[part] = scales
        if layer.zero_points is not None and zero_points is not None:
            layer.zero_points[part] = zero_points
        found.append(offset(made, layer.weight[part], scales, zero_points, grid))
    return torch.cat(found)


ROWS = 1 << 14
LOOKED_UP = 1.0
"""What rows that are looked up, too, add to every input's second moment, as a part of the median. Of 0, 0.1 and 1 the one with
which lookups lose no more than by least squares, at 3 to 10 % more distance in all than with 0.1 (docs/training.md)."""


@torch.no_grad()
def head(model: PreTrainedModel, tokens: Tensor, progress: Callable[[str], None]) -> None:
    """GPTQ of a head of fewer than 8 bits, or of the embedding that it shares, on what the float model's head reads: nothing
    trains it later, and nearly all that a tied embedding's error does, it does in the head. tokens: [sequences, length]."""
    tied = tied_head(model)
    name = HEAD if tied is None else EMBEDDING
    layer = model.get_submodule(name)
    if not isinstance(layer, QATLayer) or layer.spec.bits == 8:
        return
    progress(f"gptq {name}")
    moments = head_moments(model, tokens)
    if tied is not None:
        moments.diagonal().add_(LOOKED_UP * moments.diagonal().median())
    put_offset(model, name, gptq(layer, moments))


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
