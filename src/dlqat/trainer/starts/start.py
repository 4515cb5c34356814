# SPDX-License-Identifier: Apache-2.0
"""Prepared starts: where scales and latent weights stand when training begins (`--init`).

    mse       the base weights, on scales searched for least squared error
    weighted  the same, each input weighed by its mean square on the training text
    gptq      the base weights moved to where GPTQ rounds them: `offset` of the adapter
    blocks    rounding and scales learned block by block (AutoRound's way): `offset` and scales

The float weights stay as they are beside the offset, so the teacher is always the model that was given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dlqat.adapter import Adapter, base, fixed_point, latent
from dlqat.refusal import Refusal
from dlqat.trainer.calibrate import Visit, Walked, walk
from dlqat.trainer.layers.qat import QATLinear
from dlqat.trainer.options import INITS
from dlqat.trainer.rounding.gptq import compensate
from dlqat.trainer.rounding.offset import offset
from dlqat.trainer.rounding.search import search
from dlqat.trainer.starts.blockwise import reconstruct


def apply(
    init: str, model: PreTrainedModel, tokens: Callable[[], Tensor], progress: Callable[[str], None] = lambda name: None
) -> None:
    """Bring a prepared model (scales searched by mse) to the start `init`.

    tokens: gives calibration text [sequences, length], training text as a rule; mse does not ask for it.
    """
    match init:
        case "mse":
            return
        case "weighted":
            walk(model, tokens(), _on_layer(_weighted), progress)
        case "gptq":
            walk(model, tokens(), _on_layer(_gptq), progress)
        case "blocks":
            reconstruct(model, tokens(), progress)
        case other:
            raise Refusal(f"start {other!r} is not known; known: {', '.join(INITS)}")
    onto_base(model)


@torch.no_grad()
def onto_base(model: PreTrainedModel) -> None:
    """Let every offset that leads from a float weight lead to the same place from the base of one byte that will take
    the weight's place (`base_bits`): else it ends up to half a unit of that base beside it, and codes change."""
    for layer in model.modules():
        if isinstance(layer, QATLinear) and layer.spec.base_bits and layer.offset is not None:
            grid, weight = layer.spec.grid, layer.weight
            wanted = latent(weight, Adapter(grid, layer.scales, layer.zero_points, offset=layer.offset))
            kept = base(fixed_point(weight, layer.scales, grid), layer.adapter())
            layer.offset = offset(wanted, kept, layer.scales, layer.zero_points, grid)


def _on_layer(visit: Callable[[QATLinear, Tensor], None]) -> Visit:
    def one(name: str, layer: Walked, moments: Tensor) -> None:
        if isinstance(layer, QATLinear):
            visit(layer, moments)

    return one


def _weighted(layer: QATLinear, moments: Tensor) -> None:
    _set(layer, *search(layer.weight, layer.spec.grid, moments.diagonal()))


def _gptq(layer: QATLinear, moments: Tensor) -> None:
    made, scales, zero_points = compensate(layer.weight, moments, layer.spec.grid)
    _set(layer, scales, zero_points)
    layer.offset = offset(made, layer.weight, scales, zero_points, layer.spec.grid)


@torch.no_grad()
def _set(layer: QATLinear, scales: Tensor, zero_points: Tensor | None) -> None:
    layer.scales.copy_(scales)
    if layer.zero_points is not None and zero_points is not None:
        layer.zero_points.copy_(zero_points)
