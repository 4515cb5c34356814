# SPDX-License-Identifier: Apache-2.0
"""Examples that training does not see, and the loss on them: does training help, or is the data learned by heart?

They are drawn by (seed) from data that have answers, a tenth by default and MOST at most: a forward pass over them costs
what a few steps cost. The loss is the one that is trained. model_dir keeps a line for the start, one wherever the
resumable state is saved, and one for the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlqat import plain_file
from dlqat.refusal import Refusal
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.data.examples import IGNORED, Examples

FILE = "held_out.jsonl"
SHARE, MOST = 0.1, 32
"""Of the examples, where nobody says how many; and how many at most."""
_STREAM = 1 << 63
"""Apart from the permutations of batches.py, whose keys count epochs."""


@dataclass(frozen=True, slots=True)
class HeldRow:
    """The loss after `step` steps, in nats per token that carries loss."""

    step: int
    loss: float


@dataclass(frozen=True, eq=False, slots=True)
class Watched:
    """What is measured while training runs, and who hears of it."""

    batches: Batches
    """All held-out examples, in their order."""
    hear: Callable[[HeldRow], None]

    def loss(self, summed: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> float:
        """Mean loss over all of them; `summed` gives that of one batch (ids, labels)."""
        total, count, size, examples = 0.0, 0, self.batches.size, len(self.batches.examples)
        with torch.no_grad():
            for step in range(-(-examples // size)):
                ids, labels = self.batches.batch(step)
                labels[examples - step * size :] = IGNORED  # a last batch is filled up with the first examples
                total += float(summed(ids.to(device), labels.to(device)))
                count += int((labels != IGNORED).sum())
        return total / count


def split(examples: Examples, share: float | None, seed: int) -> tuple[Examples, Examples]:
    """(to train on, held out). share: of the examples; None: SHARE where the data have answers, else nothing.

    Refusal if a share that was asked for is not one example, or leaves none to train on."""
    wanted = (SHARE if examples.answers else 0.0) if share is None else share
    total = len(examples)
    count = min(MOST, int(wanted * total))
    if share and not 0 < count < total:
        raise Refusal(f"--eval-share {share:g} of {total:,} examples is none; give a larger share, more data, or 0")
    words = np.random.Philox(key=np.array([seed % 2**64, _STREAM], np.uint64)).random_raw(total)
    order = np.argsort(words, kind="stable")
    held, rest = sorted(order[:count].tolist()), sorted(order[count:].tolist())
    return (examples.take(rest) if count else examples), examples.take(held)


class HeldLog:
    """Appends rows to model_dir's file; what a killed run measured after its last state is cut off."""

    def __init__(self, path: Path, done: int) -> None:
        self.rows = [row for row in read(path) if row.step <= done] if done else []
        path.unlink(missing_ok=True)
        self._path = path
        for row in self.rows:
            self._append(row)

    def __call__(self, row: HeldRow) -> None:
        if all(row.step != known.step for known in self.rows):
            self.rows.append(row)
            self._append(row)

    def _append(self, row: HeldRow) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> list[HeldRow]:
    """Rows of model_dir's file, nothing if there is none; a line that is still being written is left out."""
    if not path.exists():
        return []
    found: list[HeldRow] = []
    for line in plain_file.text(path).splitlines(keepends=True):
        try:
            row = json.loads(line)
            found.append(HeldRow(int(row["step"]), float(row["loss"])))
        except (ValueError, KeyError, TypeError):
            if line.endswith("\n"):
                raise Refusal(f"{path} is damaged: {line.strip()[:80]!r}; delete it") from None
    return found


def verdict(rows: list[HeldRow], examples: int) -> str:
    """One line for people: from where to where."""
    first, last = rows[0], rows[-1]
    said = f"held-out loss: {first.loss:.4f} at the start, {last.loss:.4f} now ({examples} examples that were not trained on)"
    if last.loss >= first.loss:
        return f"{said}: training did not help there; try fewer steps, a lower --lr, or more data"
    best = min(rows, key=lambda row: row.loss)
    if best.loss < 0.98 * last.loss:
        return f"{said}; it was {best.loss:.4f} at step {best.step}: fewer steps, or more data, would serve better"
    return said
