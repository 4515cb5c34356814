# SPDX-License-Identifier: Apache-2.0
"""Perplexity of anything that gives logits: one code for PyTorch models and for artifacts on devices.

Windows of 512 tokens, each from an empty cache, every token but a window's first is predicted: the usual
protocol of published WikiText figures with non-overlapping windows. NLL in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlqat.devices.device import Session

Scorer = Callable[[Sequence[int]], NDArray[np.float32]]
"""Token ids of one window -> logits float32 [len, vocab]."""

WINDOW = 512


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Mean negative log-likelihood in nats over `tokens` predictions."""

    nll: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)


def of_session(session: Session) -> Scorer:
    """An artifact as a scorer."""

    def score(token_ids: Sequence[int]) -> NDArray[np.float32]:
        session.reset()
        return session.logits(token_ids)

    return score


def of_model(model: Any) -> Scorer:
    """A transformers model as a scorer, on the device and in the dtype that it has."""

    def score(token_ids: Sequence[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            rows = model(torch.tensor([list(token_ids)], device=model.device), use_cache=False).logits[0]
        return rows.float().cpu().numpy()

    return score


def windows(token_ids: Sequence[int], window: int = WINDOW) -> Iterator[Sequence[int]]:
    """Non-overlapping windows; a last one of fewer than 2 tokens predicts nothing and is dropped."""
    for start in range(0, len(token_ids), window):
        if len(part := token_ids[start : start + window]) > 1:
            yield part


def perplexity(score: Scorer, token_ids: Sequence[int], window: int = WINDOW) -> Perplexity:
    """Perplexity over token_ids. ValueError if there is nothing to predict or a logit is not a number."""
    total, count = 0.0, 0
    for part in windows(token_ids, window):
        rows = score(part)
        for row, token in zip(rows[:-1], part[1:], strict=True):
            x = row.astype(np.float64)
            total += float(x.max() + np.log(np.exp(x - x.max()).sum()) - x[token])
        count += len(part) - 1
    if not count or not math.isfinite(total):
        raise ValueError(f"no perplexity: {count} tokens to predict, negative log-likelihood {total}")
    return Perplexity(total / count, count)
