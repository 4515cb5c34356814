# SPDX-License-Identifier: Apache-2.0
"""A compression method as a start: the linears of the blocks become what its plan says, the rest is rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlqat.recipe import Recipe
from dlqat.trainer.methods.method import Method
from dlqat.trainer.starts.start import Made, Site

if TYPE_CHECKING:
    from dlqat.architecture import Decoder


@dataclass(frozen=True, slots=True)
class Compressed:
    """The start that `method` makes."""

    method: Method

    @property
    def tokens(self) -> int:
        return 40960 if self.method.calibrated or self.method.influenced else 0

    def least(self, length: int) -> int:
        return length if self.tokens else 0

    def foretell(self, recipe: Recipe, decoder: Decoder) -> Any:
        from dlqat.trainer.methods import compress, plan_table

        nodes = compress.first_plan(self.method, recipe, decoder)
        return None if self.method.influenced else plan_table.table(self.method, nodes, decoder)

    def prepare(self, site: Site) -> Made:
        from dlqat import architecture
        from dlqat.trainer.layers.prepare import prepare
        from dlqat.trainer.methods import compress, plan_table
        from dlqat.trainer.starts.offsets import onto_base

        decoder = architecture.read(site.model.config.to_dict())
        prepare(site.model, site.recipe, site.seed, site.progress, but=decoder.linears())
        nodes, tensors = compress.compress(
            site.model, self.method, site.recipe, decoder, site.text, site.progress, site.seed
        )
        onto_base(site.model)
        if self.method.influenced:
            site.show(plan_table.table(self.method, nodes, decoder))
        return Made(nodes, tensors)
