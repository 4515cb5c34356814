# SPDX-License-Identifier: Apache-2.0
"""The order of training: which examples make up step k.

A pure function of (seed, step). A resumed run sees the batches that the killed run would have seen,
and a run on several processes those of a run on one: every rank takes its slice of the same batch.
Nothing is loaded while training runs, so there are no worker processes either.

Rows are padded on the right to the longest of the whole batch. Attention is causal, so no token sees
the padding behind it and no attention mask is needed; padding carries no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlqat.refusal import Refusal
from dlqat.trainer.data.examples import IGNORED, Examples


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of `size` examples per optimizer step, over all processes. Every epoch is a new permutation
    of all examples, and a batch may end one epoch and begin the next."""

    examples: Examples
    size: int
    seed: int = 0
    pad: int = 0

    def indices(self, step: int) -> list[int]:
        """The examples of a step, in their order."""
        total = len(self.examples)
        places = range(step * self.size, (step + 1) * self.size)
        return [int(_order(total, self.seed, place // total)[place % total]) for place in places]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """input_ids and labels, int64 [size / world, longest of the whole batch]; labels IGNORED: no loss.
        The batches of ranks 0 .. world - 1 stacked are the batch of one process."""
        if self.size % world:
            raise Refusal(f"a batch of {self.size} cannot be shared by {world} processes; use a multiple of {world}")
        rows = [self.examples.example(index) for index in self.indices(step)]
        longest = max(len(ids) for ids, _ in rows)
        share = self.size // world
        ids = torch.full((share, longest), self.pad, dtype=torch.int64)
        labels = torch.full((share, longest), IGNORED, dtype=torch.int64)
        for i, (tokens, loss) in enumerate(rows[rank * share : (rank + 1) * share]):
            ids[i, : len(tokens)] = tokens
            labels[i, : len(tokens)] = torch.where(loss, tokens.long(), IGNORED)
        return ids, labels

    def calibration(self, tokens: int, length: int) -> Tensor:
        """int64 [sequences, length]: the examples that training sees first, one behind the other, cut into sequences
        without padding; `tokens` in all, or what there is. Refusal if that is less than one sequence."""
        wanted = -(-tokens // length) * length
        found: list[Tensor] = []
        seen = 0
        for index in _order(len(self.examples), self.seed, 0):
            if seen >= wanted:
                break
            ids, _ = self.examples.example(int(index))
            found.append(ids.long())
            seen += len(ids)
        if seen < length:
            raise Refusal(
                f"calibration needs a sequence of {length} tokens, and the data have {seen}; lower --sequence-length"
            )
        count = min(seen, wanted) // length
        return torch.cat(found)[: count * length].view(count, length)

    def count(self, step: int) -> int:
        """Tokens with loss in the whole batch of a step: what the summed loss is divided by."""
        return sum(int(self.examples.example(index)[1].sum()) for index in self.indices(step))


@lru_cache(maxsize=4)
def _order(total: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(total). From raw Philox words, which numpy keeps stable over versions
    (its shuffles it does not: NEP 19), so that a run can be resumed on another machine."""
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(total)
    return np.argsort(words, kind="stable")
