# SPDX-License-Identifier: Apache-2.0
"""What a number of questions can tell: 95 % intervals for shares, means and paired differences.

Two models that answer the same questions differ far less than each differs from the truth, so the difference
is taken question by question: only those where exactly one of the two is right count.

    share        Wilson's interval
    difference   of two shares on the same questions: Bonett and Price 2012 (add 1 to each kind of
                 disagreement, then Wald); unlike Wald's it does not shrink to nothing without disagreements
    mean         of windows of text: Student's t, from the spread of the windows (there may be few)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""Standard deviations of a two-sided 95 % interval."""
T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""The same where the deviation is itself measured, for 1, 2, ... degrees of freedom (Student's t)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def share(right: int, of: int) -> Interval:
    """right / of, Wilson. ValueError without questions."""
    if of < 1:
        raise ValueError("a share of no questions")
    p, d = right / of, 1 + Z**2 / of
    middle, half = (p + Z**2 / (2 * of)) / d, Z / d * math.sqrt(p * (1 - p) / of + Z**2 / (4 * of**2))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Difference of two shares (0 or 1 per question, same order): ours - theirs."""
    better = sum(a > b for a, b in zip(ours, theirs, strict=True))
    worse = sum(a < b for a, b in zip(ours, theirs, strict=True))
    n = len(ours)
    p, q = (better + 1) / (n + 2), (worse + 1) / (n + 2)
    half = Z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return Interval((better - worse) / n, max(-1.0, p - q - half), min(1.0, p - q + half))


def enough(limit: float) -> int:
    """Questions from which on equal answers show a difference within `limit`."""
    n = 1
    while paired([1.0] * n, [1.0] * n).low <= -limit:
        n += 1
    return n


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> Interval:
    """Weighted mean with an interval of Student's t from the spread; without a second value it is infinite."""
    x = np.asarray(values, np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, np.float64)
    value = float((w * x).sum() / w.sum())
    if len(x) < 2:
        return Interval(value, -math.inf, math.inf)
    # the ratio estimator's variance: windows may have different numbers of tokens
    spread = float((w**2 * (x - value) ** 2).sum()) * len(x) / (len(x) - 1)
    half = student(len(x) - 1) * math.sqrt(spread) / float(w.sum())
    return Interval(value, value - half, value + half)


def student(degrees: int) -> float:
    """Student's t for a two-sided 95 % interval: T, then Fisher's expansion about Z (to 1e-4)."""
    if degrees <= len(T):
        return T[degrees - 1]
    terms = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + sum(term / degrees**power for power, term in enumerate(terms, 1))
