# SPDX-License-Identifier: Apache-2.0
"""Whether a recipe and sequences fit a model, told from shapes alone: before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping

from dlqat import recipe
from dlqat.architecture import Decoder
from dlqat.recipe import LayerSpec, Recipe
from dlqat.refusal import Refusal
from dlqat.trainer.prepare import EMBEDDING, HEAD


def check(rules: Recipe, decoder: Decoder) -> None:
    """Refusal for a grid that does not fit the model's shapes, a rule for no module, or a wish that nothing would fulfil."""
    outer = decoder.vocab_size, decoder.hidden_size
    shapes = {**decoder.linears(), EMBEDDING: outer, HEAD: outer}
    specs = rules.layers(shapes)
    if not specs:
        raise Refusal("the recipe matches no module of this model; its rules are matched against whole module names")
    for rule in rules.rules:
        if not any(recipe.matches(rule.match, name) for name in shapes):
            raise Refusal(
                f"the recipe's rule {rule.match!r} matches no module of this model; it must match a whole name, "
                f"as model.layers.0.self_attn.q_proj, {EMBEDDING} or {HEAD}"
            )
    _outer(specs, tied=decoder.tied)


def check_length(length: int, decoder: Decoder) -> None:
    """Refusal of sequences that the model has no positions for: beyond them it was never trained, and never runs."""
    if length > decoder.max_positions:
        raise Refusal(
            f"--sequence-length {length} is longer than the model's {decoder.max_positions} positions; "
            f"give --sequence-length {decoder.max_positions} or less"
        )


def _outer(specs: Mapping[str, LayerSpec], *, tied: bool) -> None:
    """Refusal for what is asked of the embedding or the head and would be left undone."""
    for name in (EMBEDDING, HEAD):
        spec = specs.get(name)
        if spec is not None and (spec.rank or spec.magnitude or spec.train_scales):
            wish = f"rank = {spec.rank}, magnitude = {spec.magnitude}, train_scales = {spec.train_scales}".lower()
            raise Refusal(
                f"{name}: nothing in it is trained, and the recipe has {wish} for it; they must be 0 and false"
            )
    head, embedding = specs.get(HEAD), specs.get(EMBEDDING)
    if tied and head is not None and (embedding is None or head.grid != embedding.grid):
        raise Refusal(
            f"{HEAD}: the recipe has {head.grid} for it, but in this model it is tied to {EMBEDDING}, which "
            f"{'no rule matches' if embedding is None else f'has {embedding.grid}'}; give both the same grid"
        )
