# SPDX-License-Identifier: Apache-2.0
"""What a compression method is: a plan from shapes, then the tensors of one linear at a time.

A method is a frozen dataclass: its fields are its options (`--set keep=0.25`), checked when it is made, so that
nothing is begun with a wrong one. It never sees the model: compress.py walks the blocks, measures what a method
asks for, and puts the modules of the plan in place, so that later blocks see what earlier ones became.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from dlqat.plan import Node, Plan, Shape
from dlqat.recipe import LayerSpec


class Method(Protocol):
    """A value; its dataclass fields are its options."""

    @property
    def calibrated(self) -> bool:
        """Whether `make` needs the second moments of what a layer reads."""
        ...

    @property
    def influenced(self) -> bool:
        """Whether `plan` needs each block's influence: 1 - cos(what it reads, what it gives)."""
        ...

    def plan(self, specs: Mapping[str, LayerSpec], shapes: Mapping[str, Shape], influence: Sequence[float]) -> Plan:
        """What each linear of the blocks becomes. `specs`: what the recipe wants of it. Refusal where a shape does not
        fit. Without weights at hand, so that it can be told before any work; influence is then uniform."""
        ...

    def make(self, path: str, node: Node, weight: Tensor, moments: Tensor | None) -> dict[str, Tensor]:
        """The tensors of the adapter file (by path) that make `node` of a weight [out, in].

        moments: sum of X^T X [in, in] over the calibration tokens, if the method is `calibrated`."""
        ...

    def paper_bits(self, node: Node, shape: Shape) -> float:
        """Bits of the layer as the method's paper counts them (plan.bits counts what is stored)."""
        ...
