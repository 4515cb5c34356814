# SPDX-License-Identifier: Apache-2.0
"""Several short questions in one call: their contexts side by side, then all continuations side by side.

A call of a decoder costs as much as its weights (a runtime may even dequantize them), however few tokens it reads; so
a hundred short calls are slow and one with as many tokens is not. Texts are padded on the right; a padded place is
hidden by the attention mask, in the cache as well, so the numbers are those of each text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True)
class Group:
    """A context and the continuations that are asked for after it. None of them is empty."""

    context: Tokens
    more: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class GroupLogits:
    """Logits float32: `last` [vocab] after the context, `more` [len, vocab] after each token of each continuation."""

    last: NDArray[np.float32]
    more: tuple[NDArray[np.float32], ...]


@runtime_checkable
class Batching(Protocol):
    """What a Session may offer as well. `batches` says whether it does with the program that is open."""

    @property
    def batches(self) -> bool: ...

    def batch(self, groups: Sequence[Group]) -> list[GroupLogits]:
        """Every group from an empty cache; afterwards the cache is empty."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """Inputs of one call: ids, positions [rows, length], and mask [rows, past + length] (1 where a token is)."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    positions: NDArray[np.int64]


def contexts(groups: Sequence[Group]) -> Step:
    """One row per group."""
    ids, mask = padded([g.context for g in groups])
    return Step(ids, mask, np.tile(np.arange(ids.shape[1]), (len(ids), 1)))


def continuations(groups: Sequence[Group], first: Step) -> tuple[Step, NDArray[np.int64]]:
    """One row per continuation, after `first`; and the row of `first` that each continues."""
    owner = np.array([i for i, g in enumerate(groups) for _ in g.more], np.int64)
    ids, mask = padded([m for g in groups for m in g.more])
    start = np.array([len(groups[i].context) for i in owner], np.int64)
    positions = start[:, None] + np.arange(ids.shape[1])
    return Step(ids, np.concatenate([first.mask[owner], mask], 1), positions), owner


def whole(groups: Sequence[Group]) -> Step:
    """One row per continuation with its context before it: for programs that cannot go on from a padded cache."""
    ids, mask = padded([[*g.context, *m] for g in groups for m in g.more])
    return Step(ids, mask, np.tile(np.arange(ids.shape[1]), (len(ids), 1)))


def apart(groups: Sequence[Group], first: NDArray[Any], second: NDArray[Any]) -> list[GroupLogits]:
    """What each group asked for, from the logits of `contexts` and of `continuations`."""
    found, at = list[GroupLogits](), 0
    for row, group in zip(first, groups, strict=True):
        more = tuple(second[at + i, : len(m)] for i, m in enumerate(group.more))
        found.append(GroupLogits(row[len(group.context) - 1], more))
        at += len(group.more)
    return found


def apart_whole(groups: Sequence[Group], logits: NDArray[Any]) -> list[GroupLogits]:
    """The same from the logits of `whole`."""
    found, at = list[GroupLogits](), 0
    for group in groups:
        start = len(group.context)
        more = tuple(logits[at + i, start : start + len(m)] for i, m in enumerate(group.more))
        found.append(GroupLogits(logits[at, start - 1], more))
        at += len(group.more)
    return found


def padded(texts: Sequence[Tokens]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """ids [texts, longest], 0 where a text has ended, and the mask of its tokens."""
    longest = max(map(len, texts))
    ids = np.array([[*t, *[0] * (longest - len(t))] for t in texts], np.int64)
    return ids, np.array([[1] * len(t) + [0] * (longest - len(t)) for t in texts], np.int64)
