# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods and greedy text of anything that is a Session: the arithmetic under dlqat-eval.

Questions of a benchmark share their beginnings: the choices of one question share its context, and the
contexts of a few-shot task share their examples. A Session has one cache and no batch, so the work is saved
there: the questions are sorted by context, a context is read once, and between two choices the cache is cut
back to it (Rewindable; a Session that cannot reads everything again, and gives the same numbers).

The distribution over the first token of a continuation is the context's last row, so a choice of k tokens
costs k - 1 more. NLL in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.device import DeviceFailure, Rewindable, Session


@dataclass(frozen=True, slots=True, order=True)
class Question:
    """How likely is `continuation` (one token or more) after `context` (one token or more)?"""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def within(self, limit: int) -> Question:
        """The same with the context's beginning cut off, so that at most `limit` tokens are read (lm_eval's rule)."""
        continuation = self.continuation[-limit:]
        keep = limit + 1 - len(continuation)
        return Question(self.context[-keep:], continuation)


@dataclass(frozen=True, slots=True)
class Score:
    """Natural log of the probability; whether greedy decoding would have written the continuation."""

    logprob: float
    greedy: bool


class Feed:
    """A Session that remembers what is in its cache and reads only what is new."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cached: tuple[int, ...] = ()
        self._last: NDArray[np.float32] | None = None
        session.reset()

    def rows(self, context: tuple[int, ...], more: tuple[int, ...]) -> list[NDArray[np.float32]]:
        """Logits after `context` and after each of `more`: 1 + len(more) rows [vocab]."""
        last = self._last
        if self._cached != context or last is None:
            self._go_to(context)
            last = self._last = self._read(context[len(self._cached) :])[-1]
            self._cached = context
        if not more:
            return [last]
        rows: list[NDArray[np.float32]] = [last, *self._read(more)]
        if isinstance(self._session, Rewindable):
            self._session.truncate(len(context))
        else:
            self._session.reset()
            self._cached, self._last = (), None
        return rows

    def _go_to(self, context: tuple[int, ...]) -> None:
        """Leave in the cache what `context` begins with, but not all of it: its last row is wanted."""
        shared = 0
        for a, b in zip(self._cached, context[:-1], strict=False):
            if a != b:
                break
            shared += 1
        if shared and isinstance(self._session, Rewindable):
            self._session.truncate(shared)
            self._cached = context[:shared]
        else:
            self._session.reset()
            self._cached = ()

    def _read(self, token_ids: tuple[int, ...]) -> NDArray[np.float32]:
        rows = self._session.logits(token_ids)
        if len(rows) != len(token_ids):
            raise DeviceFailure(f"the program returned {len(rows)} rows of logits for {len(token_ids)} tokens")
        if not bool(np.isfinite(rows).all()):
            raise DeviceFailure(f"NaN or infinite logits among {len(token_ids)} tokens")
        return rows


def scores(session: Session, questions: Sequence[Question]) -> Iterator[tuple[Question, Score]]:
    """Every question with its score, sorted by context. DeviceFailure if rows are missing or not numbers."""
    feed = Feed(session)
    for question in sorted(set(questions)):
        rows = feed.rows(question.context, question.continuation[:-1])
        yield question, judge(rows, question.continuation)


def judge(rows: Sequence[NDArray[np.float32]], continuation: Sequence[int]) -> Score:
    """The score of a continuation from the row before each of its tokens."""
    total, greedy = 0.0, True
    for row, token in zip(rows, continuation, strict=True):
        x = row.astype(np.float64)
        top = x.max()
        total += float(x[token] - top - np.log(np.exp(x - top).sum()))
        greedy = greedy and int(row.argmax()) == token
    return Score(total, greedy)


def greedy_text(
    session: Session, context: Sequence[int], stop_tokens: Sequence[int], most: int, stop: Callable[[list[int]], bool]
) -> list[int]:
    """Up to `most` greedy tokens after `context`; ends before a stop token and after `stop(tokens)`."""
    session.reset()
    tokens: list[int] = []
    fed = list(context)
    while len(tokens) < most:
        row = session.logits(fed)[-1]
        if not bool(np.isfinite(row).all()):
            raise DeviceFailure(f"NaN or infinite logits at step {len(tokens)}")
        token = int(row.argmax())
        if token in stop_tokens:
            break
        tokens.append(token)
        if stop(tokens):
            break
        fed = [token]
    return tokens
