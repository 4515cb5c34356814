# SPDX-License-Identifier: Apache-2.0
"""L3: greedy text, token by token, equal to what the reference would have written, EOS at the same place.

The artifact writes: prefill, then argmax and decode one by one, on past an EOS so that every prompt gives
the same number of tokens to judge. The reference then reads prompt and text in one pass, and its own
argmax at every position must be the artifact's next token. If all agree, the reference would have written
the same text (induction over the tokens), without a slow decode of its own.

Two tokens whose reference logits are closer than float32 (float16) can tell are a tie: the artifact's choice is as
good, it is listed, and judging goes on along the artifact's text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.device import DeviceFailure, Session
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check.divergence import is_tie


@dataclass(frozen=True, slots=True)
class Text:
    """What the artifact wrote for one prompt, judged. Steps count from 0; None: it did not happen."""

    tokens: int
    stop_step: int | None
    """Where its first EOS is."""
    wrong_step: int | None
    wrong: str
    ties: tuple[int, ...]


def write(session: Session, prompt: Sequence[int], tokens: int) -> list[int]:
    """`tokens` greedy tokens. DeviceFailure if a logit is not a number."""
    return [token for token, _ in steps(session, prompt, tokens)]


def steps(session: Session, prompt: Sequence[int], tokens: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The same, each token with the logits [vocab] that it is the largest of."""
    session.reset()
    fed: Sequence[int] = prompt
    for step in range(tokens):
        row = session.logits(fed)[-1]
        if not bool(np.isfinite(row).all()):
            raise DeviceFailure(f"NaN or infinite logits at step {step}")
        fed = [int(row.argmax())]
        yield fed[0], row


def judge(
    prompt: Sequence[int],
    text: Sequence[int],
    eos: Sequence[int],
    reference: NDArray[np.float32],
    tie: float = tolerances.TIE,
) -> Text:
    """`reference`: its logits [len(prompt) + len(text), vocab] over prompt and text."""
    rows = reference[len(prompt) - 1 : len(prompt) + len(text) - 1]
    ties: list[int] = []
    wrong_step, wrong = None, ""
    for step, (row, token) in enumerate(zip(rows, text, strict=True)):
        best = int(row.argmax())
        if best == token:
            continue
        if is_tie(row, best, token, tie):
            ties.append(step)
            continue
        wrong_step = step
        wrong = f"token {token} at step {step}, the reference has {best} (ahead by {row[best] - row[token]:.2g})"
        break
    stop = next((step for step, token in enumerate(text) if token in eos), None)
    return Text(len(text), stop, wrong_step, wrong, tuple(ties))
