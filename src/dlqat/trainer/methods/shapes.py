# SPDX-License-Identifier: Apache-2.0
"""Ranks and groups that the grids of dlqat can hold."""

from __future__ import annotations

from dataclasses import replace

from dlqat.grid import GROUP_SIZES
from dlqat.plan import Factors, Shape
from dlqat.recipe import LayerSpec

STEP = 16
"""Ranks are multiples of the smallest group."""


def rank(wanted: float, shape: Shape) -> int:
    """The nearest rank below `wanted` that the grids can hold; never less than 16 nor more than the shape has."""
    return max(STEP, int(min(wanted, *shape)) // STEP * STEP)


def low_rank(rank: int, left: LayerSpec, right: LayerSpec) -> Factors:
    """Factors on the grids of `left` and `right`; left's groups lie along the rank, so they are made to divide it."""
    group = left.group_size
    if group and rank % group:
        group = max(g for g in GROUP_SIZES if g <= group and rank % g == 0)
    return Factors(rank, replace(left, group_size=group), right)
