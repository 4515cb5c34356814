# SPDX-License-Identifier: Apache-2.0
"""Ranks that the grids of dlqat, and the groups of every target, can hold; the block of a linear."""

from __future__ import annotations

import re
from dataclasses import replace

from dlqat.grid import GROUP_SIZES
from dlqat.plan import Shape, Spec
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal
from dlqat.tree import LowRank

SMALLEST = GROUP_SIZES[0]
PORTABLE = 32
"""ExecuTorch's groups are multiples of 32."""


def rank(wanted: float, shape: Shape, spec: LayerSpec) -> int:
    """The nearest rank below `wanted` whose groups the grid of `spec` and the targets can hold; at least one group."""
    step = min(spec.group_size or SMALLEST, PORTABLE, min(shape) // SMALLEST * SMALLEST)
    if not step:
        raise Refusal(f"a weight of {shape[0]} x {shape[1]} is too small for factors: no side may be under {SMALLEST}")
    return max(step, int(min(wanted, *shape)) // step * step)


def low_rank(rank: int, left: LayerSpec, right: LayerSpec) -> LowRank[Spec, int]:
    """Factors on the grids of `left` and `right`; left's groups lie along the rank, so they are made to divide it."""
    group = left.group_size
    if group and rank % group:
        group = max(g for g in GROUP_SIZES if g <= group and rank % g == 0)
    return LowRank(replace(left, group_size=group), right, rank)


def block(name: str) -> int:
    """The number of the block that a linear is in: of model.layers.7.mlp.up_proj, 7."""
    found = re.search(r"\.(\d+)\.", name)
    assert found is not None  # linears of blocks only
    return int(found[1])
