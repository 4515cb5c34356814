# SPDX-License-Identifier: Apache-2.0
"""What XNNPACK holds exactly, and the reason and the recipe line where it does not.

ExecuTorch's own lowering takes some of these without a word and computes something else (measured with executorch
1.5.1, docs/executorch.md): zero-points are dropped, the scales of weight-only int4 are dropped, scales are rounded to
bfloat16. Hence every condition stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dlqat.architecture import EMBEDDING
from dlqat.exporters.storage import Leaf
from dlqat.recipe import LayerSpec


@dataclass(frozen=True)
class Storage:
    """`storage.Storage`."""

    specs: Mapping[str, LayerSpec]

    def supports(self, name: str, weight: Leaf) -> str | None:
        if isinstance(weight, Tensor):
            return None
        grid = weight.grid
        if weight.zero_points is not None:
            return f"{grid} has zero-points, which XNNPACK drops without a word; recipe: symmetric = true"
        if name == EMBEDDING or grid.group_size is None:
            return (
                None
                if grid.bits > 4 or weight.codes.shape[1] % 2 == 0
                else "an odd number of inputs does not pack into bytes of two 4-bit codes"
            )
        if grid.bits > 4:
            return f"{grid}: XNNPACK has groups for 4-bit codes only; recipe: group_size = 0 (one scale per row)"
        if grid.group_size % 32:
            return f"{grid}: XNNPACK has groups of multiples of 32; recipe: group_size = 32"
        if not torch.equal(weight.scales.to(torch.bfloat16).float(), weight.scales):
            return f"{grid}: XNNPACK keeps group scales as bfloat16, and these would be rounded; fold with dlqat's own scales"
        if not rounds(name, self.specs):
            return f"{grid}: trained with float activations, and XNNPACK rounds the input of int4 groups to int8; recipe: activation_bits = 8"
        return None

    def describe(self, name: str, weight: Leaf) -> str:
        if isinstance(weight, Tensor):
            return "float32"
        if name == EMBEDDING:
            return "int8 codes, looked up"
        stored = "qbint4" if weight.grid.group_size else "qcint8" if weight.grid.bits > 4 else "qcint4"
        return f"XNNPACK {stored}, {'int8' if rounds(name, self.specs) else 'float'} activations"


def rounds(name: str, specs: Mapping[str, LayerSpec]) -> bool:
    """Whether the input of a linear is rounded to int8: as its layer was trained; a tied head, always."""
    spec = specs.get(name) or next((s for n, s in specs.items() if name.startswith(f"{n}.")), None)
    return spec is None or spec.activation_bits == 8
