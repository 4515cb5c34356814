# SPDX-License-Identifier: Apache-2.0
"""Scales that serve what a layer reads: each input of the blocks' linears weighs as much as its mean square on the text,
in the search and in the refit after it. One forward pass of the float model, and a search of a quarter of the ranges: the
refit finds what lies between them."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from dlqat.grid import Grid
from dlqat.trainer.calibrate import mean_squares
from dlqat.trainer.layers.prepare import Find, nearest
from dlqat.trainer.rounding.search import COARSE, refit, search


def find(model: PreTrainedModel, tokens: Tensor) -> Find:
    """How `prepare` finds the scales of this float model. tokens: [sequences, length]."""
    squares = mean_squares(model, tokens)

    def of(name: str, weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
        if name not in squares:
            return nearest(name, weight, grid)
        found = search(weight, grid, squares[name], COARSE)
        return refit(weight, found, grid, squares[name]), found[1]

    return of
