# SPDX-License-Identifier: Apache-2.0
"""What the command line needs of a target: a plan before any work, and the writing of one folder.

A target is a module target.py in a folder of the format's name (dlqat.formats).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dlqat.architecture import EMBEDDING, HEAD, Decoder
from dlqat.exporters.manifest import Written
from dlqat.exporters.storage import LayerRow
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Options:
    """What every target asks; each has its own, with its forms and whatever else it lets the user choose."""

    context: int
    """Longest text (prompt and answer, in tokens) that the artifact is prepared for."""
    form: str
    """One of the target's FORMS, by default the first."""


Chosen = TypeVar("Chosen", bound=Options)


class Target(Protocol[Chosen]):
    """A module that writes one kind of artifact."""

    Options: type[Chosen]
    FORMS: tuple[str, ...]

    def plan(self, model: FoldedModel, source: Path, options: Chosen) -> list[LayerRow]:
        """What each layer would become. Writes nothing. Refusal if `source` lacks what the artifact needs."""
        ...

    def write(
        self, model: FoldedModel, source: Path, folder: Path, options: Chosen, done: Callable[[str], None]
    ) -> Written:
        """Write the artifact of `model`, whose folded/ folder is `source`, into the empty `folder`."""
        ...


def choice(*known: str) -> Any:
    """A field of an option dataclass: one of these, by default the first."""
    return field(default=known[0], metadata={"known": known})


def chosen(kind: type[Chosen], target: str, asked: Mapping[str, str | None], context: int) -> Chosen:
    """The options that were asked for, defaults for the others. Refusal for what the target does not know."""
    known: dict[str, tuple[str, ...]] = {f.name: f.metadata["known"] for f in fields(kind) if f.metadata}
    given = {name: value for name, value in asked.items() if value}
    for name, value in given.items():
        if value not in known.get(name, ()):
            option = f"--{name.replace('_', '-')} {value}"
            names = f"known: {', '.join(known[name])}" if name in known else "it has no such choice"
            raise Refusal(f"{option} is not known to target {target}; {names}")
    return kind(context, **given)


def parameters(facts: Decoder) -> int:
    """How many numbers the model's matrices have; a tied head counts once."""
    table = facts.vocab_size * facts.hidden_size
    return table * (1 if facts.tied else 2) + sum(out * inputs for out, inputs in facts.linears().values())


def sizes(tensors: Mapping[str, int]) -> dict[str, int]:
    """Bytes by component, of bytes by tensor. What a tied head shares with the embedding counts as the embedding's."""
    found = Counter[str]()
    for name, size in tensors.items():
        found[_component(name)] += size
    return dict(found)


def _component(tensor: str) -> str:
    if tensor.startswith(f"{EMBEDDING}."):
        return "embedding"
    if tensor.startswith(f"{HEAD}."):
        return "head"
    return "linears" if "_proj" in tensor and not tensor.endswith(".bias") else "norms, biases, tables"
