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

from dlqat.adapter import OFFSET_UNIT
from dlqat.refusal import Refusal
from dlqat.trainer.blockwise import reconstruct
from dlqat.trainer.calibrate import walk
from dlqat.trainer.gptq import compensate
from dlqat.trainer.layer import QATLinear
from dlqat.trainer.search import search

KNOWN = ("mse", "weighted", "gptq", "blocks")


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
            walk(model, tokens(), _weighted, progress)
        case "gptq":
            walk(model, tokens(), _gptq, progress)
        case "blocks":
            reconstruct(model, tokens(), progress)
        case other:
            raise Refusal(f"start {other!r} is not known; known: {', '.join(KNOWN)}")


def _weighted(name: str, layer: QATLinear, moments: Tensor) -> None:
    _set(layer, *search(layer.weight, layer.spec.grid, moments.diagonal()))


def _gptq(name: str, layer: QATLinear, moments: Tensor) -> None:
    made, scales, zero_points = compensate(layer.weight, moments, layer.spec.grid)
    _set(layer, scales, zero_points)
    layer.offset = offset(made, layer)


@torch.no_grad()
def _set(layer: QATLinear, scales: Tensor, zero_points: Tensor | None) -> None:
    layer.scales.copy_(scales)
    if layer.zero_points is not None and zero_points is not None:
        layer.zero_points.copy_(zero_points)


@torch.no_grad()
def offset(made: Tensor, layer: QATLinear) -> Tensor:
    """int8 [out, in]: the way from the base weight to `made` [out, in], in 1/64 of a grid step.

    Cut at two steps; the codes of base + offset are those of `made` wherever two steps reach.
    """
    out, groups = layer.scales.shape
    s = layer.scales[..., None]
    z = torch.zeros_like(s) if layer.zero_points is None else layer.zero_points[..., None].float()
    low, high = layer.spec.grid.qmin - z, layer.spec.grid.qmax - z
    base = layer.weight.float().view(out, groups, -1) / s
    target = made.view(out, groups, -1) / s
    # Beyond an end of the grid the code is that end: a base already beyond it need not move.
    beyond = ((target > high) & (base > high)) | ((target < low) & (base < low))
    steps = torch.where(beyond, 0.0, (target - base) / OFFSET_UNIT).round_()
    wanted = target.round().clamp(low, high)
    # 1/64 of a step is coarse beside a tie: one more unit brings the code back.
    steps += torch.sign(wanted - (base + steps * OFFSET_UNIT).round_().clamp_(low, high))
    return steps.clamp_(-128, 127).to(torch.int8).view(out, -1)
