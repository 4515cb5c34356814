# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods and greedy text of anything that is a Session: the arithmetic under dlqat-eval.

Questions of a benchmark share their beginnings: the choices of one question share its context, and the
contexts of a few-shot task share their examples. So the questions are sorted by context, a context is read once,
and between two choices the cache is cut back to it (device.rewindable; a Session that cannot reads everything again, and
gives the same numbers). Short questions that share little go through together where a Session has batches: what
they cost is calls, not tokens.

The distribution over the first token of a continuation is the context's last row, so a choice of k tokens
costs k - 1 more. NLL in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.batch import Batching, Group
from dlqat.devices.device import DeviceFailure, Session, rewindable

SHORT = 256
"""Tokens of a context with its continuations up to which it may share a call."""
BATCH = 512
"""Tokens in a call: enough to be worth it, few enough that their logits (100 MB at 49,152 tokens) stay small."""


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
        if rewindable(self._session):
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
        if shared and rewindable(self._session):
            self._session.truncate(shared)
            self._cached = context[:shared]
        else:
            self._session.reset()
            self._cached = ()

    def _read(self, token_ids: tuple[int, ...]) -> NDArray[np.float32]:
        rows = self._session.logits(token_ids)
        if len(rows) != len(token_ids):
            raise DeviceFailure(f"the program returned {len(rows)} rows of logits for {len(token_ids)} tokens")
        _finite(rows, len(token_ids))
        return rows


def _finite(rows: Iterable[NDArray[np.float32]], tokens: int) -> None:
    if not all(bool(np.isfinite(row).all()) for row in rows):
        raise DeviceFailure(f"NaN or infinite logits among {tokens} tokens")


def scores(
    session: Session, questions: Sequence[Question], limit: int = sys.maxsize
) -> Iterator[tuple[Question, Score]]:
    """Every question with its score, in an order of its own. DeviceFailure if rows are missing or not numbers.

    `limit`: tokens that the session has room for; a question may have one more, its last, which is not read.
    """
    asked: dict[tuple[int, ...], list[Question]] = {}
    for question in sorted(set(questions)):
        asked.setdefault(question.context, []).append(question)
    short = [c for c, qs in asked.items() if _tokens(c, qs) <= min(SHORT, limit)]
    if isinstance(session, Batching) and session.batches and len(short) > 1 and not _shared(short):
        yield from _batched(session, [(c, asked.pop(c)) for c in sorted(short, key=len)])
    feed = Feed(session)
    for context, group in asked.items():
        for question in group:
            yield question, judge(feed.rows(context, question.continuation[:-1]), question.continuation)


def _tokens(context: Sequence[int], questions: Sequence[Question]) -> int:
    return len(context) + sum(len(q.continuation) for q in questions)


def _shared(contexts: Sequence[tuple[int, ...]]) -> bool:
    """Whether contexts (sorted) mostly repeat the one before them, as few-shot examples do: then one cache is better."""
    repeated = sum(_common(a, b) for a, b in pairwise(contexts))
    return 2 * repeated > sum(map(len, contexts))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _batched(
    session: Batching, asked: Sequence[tuple[tuple[int, ...], list[Question]]]
) -> Iterator[tuple[Question, Score]]:
    """Contexts of about one length together, as many as fit into BATCH tokens."""
    at = 0
    while at < len(asked):
        end, tokens = at, 0
        while end < len(asked) and (end == at or tokens + _tokens(*asked[end]) <= BATCH):
            tokens += _tokens(*asked[end])
            end += 1
        part = asked[at:end]
        groups = [Group(c, tuple(q.continuation for q in qs)) for c, qs in part]  # a last token too much: never empty
        for (_, found), rows in zip(part, session.batch(groups), strict=True):
            for question, more in zip(found, rows.more, strict=True):
                every = [rows.last, *more[:-1]]
                _finite(every, len(question.continuation))
                yield question, judge(every, question.continuation)
        at = end


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
