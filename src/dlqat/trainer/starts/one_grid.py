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
        from dlqat.trainer.starts.offsets import head
        from dlqat.trainer.starts.weighted import find

        text = site.text()
        prepare(site.model, site.recipe, site.seed, site.progress, find=find(site.model, text))
        head(site.model, text, site.progress)
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
        from dlqat.trainer.starts.offsets import gptq, head, onto_base

        def visit(name: str, layer: Walked, moments: Tensor) -> None:
            if isinstance(layer, QATLinear):
                layer.offset = gptq(layer, moments)

        Mse.prepare(self, site)
        text = site.text()
        walk(site.model, text, visit, lambda name: site.progress(f"gptq {name}"))
        head(site.model, text, site.progress)
        onto_base(site.model)
        return Made()


@dataclass(frozen=True, slots=True)
class Blocks(Gptq):
    """Rounding and scales learned block by block (blockwise.py)."""

    def prepare(self, site: Site) -> Made:
        from dlqat.trainer.starts.blockwise import reconstruct
        from dlqat.trainer.starts.offsets import head, onto_base

        Mse.prepare(self, site)
        text = site.text()
        reconstruct(site.model, text, lambda name: site.progress(f"blocks {name}"))
        head(site.model, text, site.progress)
        onto_base(site.model)
        return Made()
