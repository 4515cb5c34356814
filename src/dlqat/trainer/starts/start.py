# SPDX-License-Identifier: Apache-2.0
"""What a start is: it makes of a float model one whose integers stand where training begins, or where they stay.

    mse       scales searched for least squared error (`rtn`: its name where nothing is trained after it)
    weighted  the same, each input weighed by its mean square on the text, and scales refitted to their codes
    gptq      the base weights moved to where GPTQ rounds them: `offset` of the adapter
    blocks    rounding and scales learned block by block (AutoRound's way): `offset` and scales
    swsc, casp, nm   a layer becomes more than one grid (dlqat.trainer.methods): a plan besides

A start is a frozen dataclass: its fields are its options (`--set keep=0.25`). What follows it, DL-QAT or nothing, it does
not know. The float weights stay as they are beside the offset, so the teacher is always the model that was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from dlqat.plan import Plan
from dlqat.recipe import Recipe

if TYPE_CHECKING:  # with transformers, and --help imports the starts
    from transformers import PreTrainedModel

    from dlqat.architecture import Decoder


def _silent(_: Any) -> None: ...


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """What a start works on."""

    model: PreTrainedModel
    """Float; prepared in place."""
    recipe: Recipe
    seed: int = 0
    text: Callable[[], Tensor] = Tensor
    """Gives calibration text [sequences, length]; not asked for by a start that needs none."""
    progress: Callable[[str], None] = _silent
    """Hears each module's name."""
    show: Callable[[Any], None] = _silent
    """Takes what is for people."""


@dataclass(frozen=True, eq=False, slots=True)
class Made:
    """What `restore` needs besides the recipe, where linears became more than one grid."""

    plan: Plan = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Start(Protocol):
    """A value; its dataclass fields are its options."""

    @property
    def tokens(self) -> int:
        """Tokens of calibration text that it sees where nobody says how many; 0: it needs no text."""
        ...

    def least(self, length: int) -> int:
        """Tokens under which it makes no sense, with sequences of `length`."""
        ...

    def foretell(self, recipe: Recipe, decoder: Decoder) -> Any:
        """The plan for people, before a weight is read; None: there is none to tell. Refusal of what cannot be."""
        ...

    def prepare(self, site: Site) -> Made:
        """Put the layers of training into site.model, with scales, zero-points, offsets and masks as they start."""
        ...
