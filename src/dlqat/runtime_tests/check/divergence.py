# SPDX-License-Identifier: Apache-2.0
"""L2: the artifact's logits against the reference's, at every length where kernels and caches change.

One reference pass over a text gives the logits of all its prefixes. The artifact gets the same tokens cut
into chunks: at once, or a prefill followed by single tokens, or a prefill after a prefill.

Statistics are values in float64 and separate from the verdict, which compares them with tolerances.py:
float activations with constants, int8 activations with the measured noise floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.device import DeviceFailure, Session
from dlqat.runtime_tests import tolerances


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """How the first sum(chunks) tokens of a text are fed."""

    name: str
    chunks: tuple[int, ...]

    @property
    def length(self) -> int:
        return sum(self.chunks)


PLANS = (
    *(FeedPlan(f"prefill {n}", (n,)) for n in (1, 7, 16, 17, 128)),
    FeedPlan("prefill 16, decode 8", (16, *[1] * 8)),
    FeedPlan("prefill 110, decode 8", (110, *[1] * 8)),
    FeedPlan("prefill 5, 17 and 30", (5, 17, 30)),
)
QUICK = (FeedPlan("prefill 17", (17,)), FeedPlan("prefill 16, decode 4", (16, *[1] * 4)))
LONG, SHORT = 600, 192


def long(positions: int) -> FeedPlan | None:
    """A plan of LONG tokens, or as many as there are positions: prefill in three chunks, then decode.

    None below SHORT: PLANS reach nearly as far. What goes wrong behind a fixed position (a clipped position, hidden keys, a
    table that ends) is seen up to here; beyond, L0 reads tables and masks.
    """
    if (length := min(LONG, positions)) < SHORT:
        return None
    first, second, decode = length // 2, length // 3, 8
    chunks = (first, second, length - first - second - decode, *[1] * decode)
    return FeedPlan(f"prefill {first}, {second} and {chunks[2]}, decode {decode}", chunks)


@dataclass(frozen=True, eq=False)
class PerPosition:
    """Per position: KL(reference || got) in nats, |difference| of logits, whether top-1 agrees or is a tie."""

    kl: NDArray[np.float64]
    max_abs: NDArray[np.float64]
    mean_abs: NDArray[np.float64]
    agree: NDArray[np.bool_]
    tie: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Rows in figures. `top1` is the share of positions with the same most likely token; ties count apart."""

    positions: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    max_abs: float
    mean_abs: float
    top1: float
    ties: int
    bad_rows: int
    """Positions with NaN or infinite logits; they are in no other figure."""


def feed(session: Session, token_ids: Sequence[int], plan: FeedPlan) -> NDArray[np.float32]:
    """Logits [plan.length, vocab] of the artifact, from an empty cache. DeviceFailure if rows are missing."""
    session.reset()
    rows: list[NDArray[np.float32]] = []
    start = 0
    for chunk in plan.chunks:
        rows.append(session.logits(token_ids[start : start + chunk]))
        if len(rows[-1]) != chunk:
            raise DeviceFailure(f"the program returned {len(rows[-1])} rows of logits for {chunk} tokens")
        start += chunk
    return np.concatenate(rows)


def compare(reference: NDArray[np.float32], got: NDArray[np.float32], tie: float = tolerances.TIE) -> PerPosition:
    """Rows of two logits [n, vocab], position by position (float64 of one row at a time)."""
    if reference.shape != got.shape:
        raise DeviceFailure(f"logits have shape {got.shape}, the reference's {reference.shape}")
    pairs = [_row(a, b, tie) for a, b in zip(reference, got, strict=True)]
    columns = [np.array(c) for c in zip(*pairs, strict=True)]
    return PerPosition(columns[0], columns[1], columns[2], columns[3].astype(bool), columns[4].astype(bool))


def _row(
    reference: NDArray[np.float32], got: NDArray[np.float32], close: float
) -> tuple[float, float, float, bool, bool]:
    if not bool(np.isfinite(got).all()):
        return np.nan, np.nan, np.nan, False, False
    a, b = reference.astype(np.float64), got.astype(np.float64)
    log_p, log_q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (a, b))
    kl = float((np.exp(log_p) * (log_p - log_q)).sum())
    gap = np.abs(a - b)
    top, other = int(a.argmax()), int(b.argmax())
    tie = top != other and is_tie(reference, top, other, close)
    return max(kl, 0.0), float(gap.max()), float(gap.mean()), top == other, tie


def is_tie(logits: NDArray[np.float32], first: int, second: int, close: float = tolerances.TIE) -> bool:
    """Whether two tokens of a row are closer than a forward can tell (tolerances.TIE: a float32 one)."""
    return abs(float(logits[first]) - float(logits[second])) <= close * float(np.abs(logits).max())


def pool(parts: Sequence[PerPosition]) -> PerPosition:
    """All positions together."""
    fields = ("kl", "max_abs", "mean_abs", "agree", "tie")
    return PerPosition(*(np.concatenate([getattr(p, f) for p in parts]) for f in fields))


def first(rows: PerPosition, length: int) -> PerPosition:
    """The first positions."""
    return PerPosition(
        rows.kl[:length], rows.max_abs[:length], rows.mean_abs[:length], rows.agree[:length], rows.tie[:length]
    )


KL_EDGES = tuple(range(-16, 3))
"""Decades of the histogram of KL: 1e-16 or less, ..., 1e2."""


def histogram(rows: PerPosition) -> list[int]:
    """Positions per decade of KL; what lies outside counts at the ends, NaN nowhere. len(KL_EDGES) - 1 numbers."""
    kl = rows.kl[np.isfinite(rows.kl)]
    exponents = np.log10(np.clip(kl, 10.0 ** KL_EDGES[0], 10.0 ** KL_EDGES[-1]))
    return np.histogram(exponents, KL_EDGES)[0].tolist()


def summarize(rows: PerPosition) -> Divergence:
    """The figures of some positions."""
    good = np.isfinite(rows.kl)
    bad = int((~good).sum())
    if bad == len(rows.kl):
        nan = float("nan")
        return Divergence(bad, nan, nan, nan, nan, nan, top1=0.0, ties=0, bad_rows=bad)
    kl = rows.kl[good]
    return Divergence(
        positions=len(rows.kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        max_abs=float(rows.max_abs[good].max()),
        mean_abs=float(rows.mean_abs[good].mean()),
        top1=float(rows.agree[good].mean()),
        ties=int(rows.tie[good].sum()),
        bad_rows=bad,
    )


def float_fault(d: Divergence, limit: float = tolerances.FLOAT_KL_MAX) -> str | None:
    """Why a runtime with float activations is not the reference, or None. `limit`: of the worst position's KL."""
    if d.bad_rows:
        return f"NaN or infinite logits at {d.bad_rows} of {d.positions} positions"
    if d.kl_max > limit:
        return f"KL of the worst position is {d.kl_max:.1e}, the limit is {limit:.0e}"
    differ = round((1 - d.top1) * d.positions) - d.ties
    if differ > 0:
        return f"the most likely token differs at {differ} of {d.positions} positions, and these are no ties"
    return None


def unstated_fault(d: Divergence, cost: Divergence) -> str | None:
    """Why a runtime that rounds in a way nobody stated is too far from float, or None. `cost`: int8 per token."""
    if d.bad_rows:
        return f"NaN or infinite logits at {d.bad_rows} of {d.positions} positions"
    limit = tolerances.UNSTATED_COST * max(cost.kl_mean, tolerances.FLOAT_KL_MAX)
    if d.kl_mean > limit:
        return f"KL to float is {d.kl_mean:.1e} on average, over {tolerances.UNSTATED_COST:g} times what int8 costs ({cost.kl_mean:.1e})"
    return None


def int8_fault(d: Divergence, floors: Sequence[Divergence]) -> str | None:
    """Why a runtime with int8 activations is further from its emulation than the emulation from itself, or None."""
    if d.bad_rows:
        return f"NaN or infinite logits at {d.bad_rows} of {d.positions} positions"
    for name, factor in (("kl_mean", tolerances.FLOOR_MEAN), ("kl_p99", tolerances.FLOOR_P99)):
        floor = max(getattr(f, name) for f in floors)
        limit = max(factor * floor, tolerances.FLOAT_KL_MAX)
        if getattr(d, name) > limit:
            return f"{name} is {getattr(d, name):.1e}, over {factor:g} times the noise floor of {floor:.1e}"
    floor = min(f.top1 for f in floors)
    share = min(floor, 1 - 1 / d.positions)
    slack = tolerances.FLOOR_TOP1_SIGMAS * np.sqrt(share * (1 - share) / d.positions)
    if d.top1 < floor - slack:
        return f"top-1 agreement is {d.top1:.1%}, the noise floor has {floor:.1%}"
    return None
