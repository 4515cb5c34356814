# SPDX-License-Identifier: Apache-2.0
"""The layers of a start that was made before, from its plan and its tensors: no search, no text."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from dlqat.adapter import need
from dlqat.grid import Grid
from dlqat.plan import Plan
from dlqat.recipe import Recipe
from dlqat.trainer.layers.prepare import prepare
from dlqat.trainer.methods import compress


def restore(model: PreTrainedModel, recipe: Recipe, plan: Plan, tensors: Mapping[str, Tensor], seed: int = 0) -> None:
    """Prepare a float model as the start did. plan: of the linears that became more than one grid."""

    def stored(name: str, weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
        zero_points = need(tensors, f"{name}.zero_points") if grid.zero_points else None
        device = weight.device
        return need(tensors, f"{name}.scales").to(device), None if zero_points is None else zero_points.to(device)

    prepare(model, recipe, seed, but=plan, find=stored)
    compress.restore(model, plan, tensors, seed)
