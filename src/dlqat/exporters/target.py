# SPDX-License-Identifier: Apache-2.0
"""What the command line needs of a target: a plan before any work, and the writing of one folder.

A target is a module with these functions; exporters/cli.py lists the modules by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dlqat.architecture import Decoder
from dlqat.exporters import decoder
from dlqat.exporters.builder import Builder, Leaf, V
from dlqat.exporters.decoder import Weight
from dlqat.exporters.manifest import Manifest
from dlqat.folded import Quantized
from dlqat.folded.disk import FoldedModel


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may choose."""

    form: str
    """One of the target's FORMS."""
    context: int
    """Longest text (prompt and answer, in tokens) that the artifact is prepared for."""
    logits: str = "last"
    """Which positions' logits generation returns: the last one's, or all (targets that name LOGITS)."""
    deployment_target: str = ""
    """The lowest system that it must run on, where the target has such (Core ML)."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What a kind of layer becomes: one line of --dry-run."""

    layers: str
    """Module name with the block's number as *, and how many there are of it."""
    count: int
    grid: str
    becomes: str
    refused: str | None


class Target(Protocol):
    """A module of this package that writes one kind of artifact."""

    FORMS: tuple[str, ...]
    """Choices of --form, the default first."""
    LOGITS: tuple[str, ...]
    """Choices of --logits, the default first; empty where the artifact has one way only."""
    DEPLOYMENT_TARGETS: tuple[str, ...]
    """Choices of --deployment-target, the default first; empty where there is no such thing."""

    def plan(self, model: FoldedModel, source: Path, options: Options) -> list[LayerRow]:
        """What each layer would become. Writes nothing. Refusal if `source` lacks what the artifact needs."""
        ...

    def write(
        self, model: FoldedModel, source: Path, folder: Path, options: Options, done: Callable[[str], None]
    ) -> Manifest:
        """Write the artifact of `model`, whose folded/ folder is `source`, into the empty `folder`."""
        ...


def rows(b: Builder[V], model: FoldedModel) -> list[LayerRow]:
    """The plan of a builder, layers of one kind together."""
    counted: dict[tuple[str, str, str, str | None], int] = {}
    for name, weight in decoder.weights(model):
        leaves = list(decoder.leaves(name, weight))
        refused = decoder.unsupported(b, name, weight)
        becomes = "" if refused else "; ".join(dict.fromkeys(b.describe(path, leaf) for path, leaf in leaves))
        kind = re.sub(r"\.\d+\.", ".*.", name, count=1)
        key = kind, _grid(weight, (leaf for _, leaf in leaves)), becomes, refused
        counted[key] = counted.get(key, 0) + 1
    return [LayerRow(kind, count, grid, becomes, refused) for (kind, grid, becomes, refused), count in counted.items()]


def _grid(weight: Weight, leaves: Iterable[Leaf]) -> str:
    grids = " and ".join(dict.fromkeys(str(x.grid) if isinstance(x, Quantized) else "float" for x in leaves))
    structure = "" if isinstance(weight, Tensor | Quantized) else f"{type(weight).__name__} of "
    return f"{structure}{grids}"


def parameters(facts: Decoder) -> int:
    """How many numbers the model's matrices have; a tied head counts once."""
    table = facts.vocab_size * facts.hidden_size
    return table * (1 if facts.tied else 2) + sum(out * inputs for out, inputs in facts.linears().values())
