# SPDX-License-Identifier: Apache-2.0
"""rtn and gptq: one grid a layer, rounded to nearest or with compensation (gptq.py). What others are measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dlqat.plan import Node, Plan, Shape
from dlqat.recipe import LayerSpec
from dlqat.trainer.rounding.to_grid import to_grid


@dataclass(frozen=True, slots=True)
class Rtn:
    """Round to nearest, on scales of least squared error."""

    @property
    def calibrated(self) -> bool:
        return False

    @property
    def influenced(self) -> bool:
        return False

    def plan(self, specs: Mapping[str, LayerSpec], shapes: Mapping[str, Shape], influence: Sequence[float]) -> Plan:
        return dict(specs)

    def make(self, path: str, node: Node, weight: Tensor, moments: Tensor | None) -> dict[str, Tensor]:
        assert isinstance(node, LayerSpec)
        return to_grid(weight, node, "gptq", moments).tensors(path)

    def paper_bits(self, node: Node, shape: Shape) -> float:
        assert isinstance(node, LayerSpec)
        return node.bits


@dataclass(frozen=True, slots=True)
class Gptq(Rtn):
    """The same with GPTQ's compensation (arXiv 2210.17323): damping 1 %, blocks of 128, no reordering."""

    @property
    def calibrated(self) -> bool:
        return True
