# SPDX-License-Identifier: Apache-2.0
"""What a Core ML program holds exactly, and how."""

from __future__ import annotations

from dataclasses import dataclass

from dlqat.exporters.coreml import sparse, weights
from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized


@dataclass(frozen=True)
class Storage:
    """`storage.Storage` for a deployment target."""

    target: str

    def supports(self, name: str, weight: Leaf) -> str | None:
        return weights.unsupported(weight)

    def describe(self, name: str, weight: Leaf) -> str:
        if isinstance(weight, Quantized) and sparse.pays(weight, self.target):
            return sparse.describe(weight)
        return weights.describe(weight, self.target)
