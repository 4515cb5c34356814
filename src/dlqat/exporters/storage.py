# SPDX-License-Identifier: Apache-2.0
"""What a target must be able to say of weights: whether it holds them exactly, and how; no graph is needed for it.

A target that writes weights only (a container) implements this; one that writes a program implements builder.Builder, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dlqat import architecture, folded
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.folded import Folded, Quantized
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal

Leaf = Quantized | Tensor
"""A weight [out, in] that is stored as it is: integers of one grid, or float32 where the recipe left it alone."""

Weight = Folded | Tensor


class Storage(Protocol):
    def supports(self, name: str, weight: Leaf) -> str | None:
        """Why this target cannot hold `weight` exactly (the sentence a user reads), or None."""
        ...

    def describe(self, name: str, weight: Leaf) -> str:
        """How a supported `weight` will stand in the artifact, in a few words for people."""
        ...


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What a kind of layer becomes: one line of --dry-run."""

    layers: str
    """Module name with the block's number as *, and how many there are of it."""
    count: int
    grid: str
    becomes: str
    refused: str | None


def rows(storage: Storage, model: FoldedModel, compound: str | None = None) -> list[LayerRow]:
    """What becomes of a model's weights, layers of one kind together.

    `compound`: why the target holds no low-rank, clustered or summed weights; None if it does."""
    counted: dict[tuple[str, str, str, str | None], int] = {}
    for name, w in weights(model):
        found = list(leaves(name, w))
        refused = unsupported(storage, name, w) if compound is None or isinstance(w, Leaf) else compound
        becomes = "" if refused else "; ".join(dict.fromkeys(storage.describe(path, leaf) for path, leaf in found))
        kind = re.sub(r"\.\d+\.", ".*.", name, count=1)
        key = kind, _grid(w, (leaf for _, leaf in found)), becomes, refused
        counted[key] = counted.get(key, 0) + 1
    return [LayerRow(kind, count, grid, becomes, refused) for (kind, grid, becomes, refused), count in counted.items()]


def unsupported(storage: Storage, name: str, w: Weight) -> str | None:
    """Why the target cannot hold the weight of module `name`, or None."""
    if name == EMBEDDING and not isinstance(w, Leaf):
        return "rows of a low-rank, clustered or summed embedding cannot be looked up; fold it on one grid"
    reasons = (storage.supports(path, leaf) for path, leaf in leaves(name, w))
    return next((reason for reason in reasons if reason is not None), None)


def weight(model: FoldedModel, name: str) -> Weight:
    """The weight of a module: its folded layer, the float tensor where no rule matched, the tied embedding."""
    behind = model.behind(name)
    if behind in model.layers:
        return model.layers[behind]
    if f"{behind}.weight" in model.tensors:
        return model.tensors[f"{behind}.weight"]
    raise Refusal(f"{name} is neither among the folded layers nor among the float tensors; fold the model again")


def weights(model: FoldedModel) -> Iterator[tuple[str, Weight]]:
    """(module, weight) of everything that the model multiplies with, a tied head included, one at a time."""
    facts = architecture.read(model.config)
    for name in (EMBEDDING, *facts.linears(), HEAD):
        yield name, weight(model, name)


def leaves(name: str, w: Weight) -> Iterator[tuple[str, Leaf]]:
    """(path, leaf) of the leaves of one weight."""
    if isinstance(w, Tensor):
        yield name, w
    else:
        yield from folded.leaves(w, name)


def _grid(w: Weight, found: Iterable[Leaf]) -> str:
    grids = " and ".join(dict.fromkeys(str(x.grid) if isinstance(x, Quantized) else "float" for x in found))
    structure = "" if isinstance(w, Tensor | Quantized) else f"{type(w).__name__} of "
    return f"{structure}{grids}"
