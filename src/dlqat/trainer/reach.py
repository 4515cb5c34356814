# SPDX-License-Identifier: Apache-2.0
"""Whether the scales of the grids reach a model's weights.

A scale is a normal number of fp16 on every target (grid.py): 2^-14 to 65,280. Weights of a layer far below or above round to
zero, or are clipped, and training starts from a model that has lost them. What is lost is measured: the error of the layer
beside that of the same layer times a power of two, which rounds alike where scales do not end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dlqat.grid import SNAP_MIN, Grid, dequantize, quantize
from dlqat.recipe import Recipe
from dlqat.refusal import Refusal
from dlqat.trainer.layers.prepare import shapes
from dlqat.trainer.rounding.search import search

BEARABLE = 0.05
"""How much of a layer (of its norm) may be lost to the ends of the scales; int4's own rounding loses about 0.09."""


@torch.no_grad()
def check(model: PreTrainedModel, recipe: Recipe) -> None:
    """Refusal of a float model with a layer whose weights the grid's scales do not reach."""
    for name, spec in recipe.layers(shapes(model)).items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        if (part := lost(weight, spec.grid)) > BEARABLE:
            size = float(torch.linalg.vector_norm(weight, dtype=torch.float32)) / math.sqrt(weight.numel())
            raise Refusal(
                f"{name}: its weights are about {size:.1e}, which scales between 2^-14 and 65280 do not reach: "
                f"{part:.0%} of the layer would be lost; scale it by a power of two and a norm or layer beside it back, "
                "or leave it out of the recipe"
            )


def lost(weight: Tensor, grid: Grid) -> float:
    """The part of weight [out, in] that is lost beyond the grid's own rounding because scales end."""
    size = float(torch.linalg.vector_norm(weight, dtype=torch.float32)) / math.sqrt(weight.numel())
    peak = float(weight.abs().max())
    if peak == 0 or (size * BEARABLE > SNAP_MIN / 2 and peak < 2.0**15):  # no error is above half a step
        return 0.0
    near = weight.float() * 2.0 ** -max(-126, min(126, math.frexp(peak)[1]))
    return math.sqrt(max(_error(weight.float(), grid) ** 2 - _error(near, grid) ** 2, 0.0))


def _error(weight: Tensor, grid: Grid) -> float:
    scales, zero_points = search(weight, grid)
    made = dequantize(quantize(weight, scales, zero_points, grid), scales, zero_points)
    return float(made.sub_(weight).double().norm() / weight.double().norm())
