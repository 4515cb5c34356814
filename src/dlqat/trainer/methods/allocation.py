# SPDX-License-Identifier: Apache-2.0
"""What each block gets under an average, by its influence: bits, or weights that stay.

Minimise sum p_l s_l 4^(-b_l) under sum p_l b_l = B: b_l = B / P + log2(s_l / s) / 2, with s the geometric mean of
the influences weighed by size. That is the classical closed form (CASP's is unread; notes of docs/methods.md);
targets hold whole bits, so each block takes the choice below its ideal, and what is left of the budget goes to the
blocks that are furthest below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def ideal(influence: Sequence[float], sizes: Sequence[float], average: float) -> list[float]:
    """b_l by the closed form."""
    total = sum(sizes)
    logs = [math.log2(max(s, 1e-9)) for s in influence]
    mean = sum(p * x for p, x in zip(sizes, logs, strict=True)) / total
    return [average + 0.5 * (x - mean) for x in logs]


def allocate(influence: Sequence[float], sizes: Sequence[float], average: float, choices: Sequence[int]) -> list[int]:
    """Bits of each block, of `choices`, whose average weighed by `sizes` does not pass `average`.

    ValueError if even the smallest choice does."""
    steps = sorted(choices)
    if average < steps[0]:
        raise ValueError(f"{average:.2f} bits a weight are left for what is not factored: less than {steps[0]}")
    wanted = ideal(influence, sizes, average)
    bits = [max((b for b in steps if b <= w), default=steps[0]) for w in wanted]
    budget = average * sum(sizes) * (1 + 1e-12)

    def spent() -> float:
        return sum(p * b for p, b in zip(sizes, bits, strict=True))

    while spent() > budget:  # the smallest choice lies above some ideals: take from where most is over
        worst = max((i for i in range(len(bits)) if bits[i] > steps[0]), key=lambda i: bits[i] - wanted[i])
        bits[worst] = max(b for b in steps if b < bits[worst])
    for i in sorted(range(len(bits)), key=lambda i: bits[i] - wanted[i]):
        higher = [b for b in steps if b > bits[i]]
        if higher and spent() + sizes[i] * (higher[0] - bits[i]) <= budget:
            bits[i] = higher[0]
    return bits


def counts(influence: Sequence[float], average: int, spread: int) -> list[int]:
    """Weights of every m that stay in each block: average - spread in the block of least influence, average + spread
    in that of most, along the ranks between them; their mean is `average`.

    PBS2P's coarse stage (arXiv 2502.01705) as far as it is known: N_low + (N_high - N_low) rank, rounded. Its
    importance, 1 / cos(input, output), orders blocks as 1 - cos does."""
    order = sorted(range(len(influence)), key=lambda i: influence[i])
    last = max(1, len(influence) - 1)
    # round() takes halves to the even number, alike above and below: the mean does not move.
    return [average + round(spread * (2 * order.index(i) / last - 1)) for i in range(len(influence))]
