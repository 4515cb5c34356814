# SPDX-License-Identifier: Apache-2.0
"""The starts of which every layer keeps one grid: which scales, and which way each weight rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dlqat.recipe import Recipe
from dlqat.trainer.starts.start import Made, Site

if TYPE_CHECKING:
    from dlqat.architecture import Decoder


@dataclass(frozen=True, slots=True)
class Mse:
    """Scales of least squared error."""

    @property
    def tokens(self) -> int:
        return 0

    def least(self, length: int) -> int:
        return 0

    def foretell(self, recipe: Recipe, decoder: Decoder) -> None:
        return None

    def prepare(self, site: Site) -> Made:
        from dlqat.trainer.layers.prepare import prepare

        prepare(site.model, site.recipe, site.seed, site.progress)
        return Made()


@dataclass(frozen=True, slots=True)
class Weighted(Mse):
    """Inputs weighed by what the layer reads; sums over a few thousand tokens are as good as over all."""

    @property
    def tokens(self) -> int:
        return 8192

    def least(self, length: int) -> int:
        return 1

    def prepare(self, site: Site) -> Made:
        from dlqat.trainer.layers.prepare import prepare
        from dlqat.trainer.starts.weighted import find

        prepare(site.model, site.recipe, site.seed, site.progress, find=find(site.model, site.text()))
        return Made()


@dataclass(frozen=True, slots=True)
class Gptq(Mse):
    """GPTQ (arXiv 2210.17323): damping 1 %, blocks of 128, no reordering."""

    @property
    def tokens(self) -> int:
        return 40960

    def least(self, length: int) -> int:
        return length

    def prepare(self, site: Site) -> Made:
        from dlqat.trainer.calibrate import Walked, walk
        from dlqat.trainer.layers.qat import QATLinear
        from dlqat.trainer.starts.offsets import gptq, onto_base

        def visit(name: str, layer: Walked, moments: Tensor) -> None:
            if isinstance(layer, QATLinear):
                gptq(layer, moments)

        Mse.prepare(self, site)
        walk(site.model, site.text(), visit, lambda name: site.progress(f"gptq {name}"))
        onto_base(site.model)
        return Made()


@dataclass(frozen=True, slots=True)
class Blocks(Gptq):
    """Rounding and scales learned block by block (blockwise.py)."""

    def prepare(self, site: Site) -> Made:
        from dlqat.trainer.starts.blockwise import reconstruct
        from dlqat.trainer.starts.offsets import onto_base

        Mse.prepare(self, site)
        reconstruct(site.model, site.text(), lambda name: site.progress(f"blocks {name}"))
        onto_base(site.model)
        return Made()
