# SPDX-License-Identifier: Apache-2.0
"""Logits that a runtime gave at some positions of some texts, judged as the setting's activations allow.

float     the reference's own, within a constant
float16   the reference's with rotary tables in float16, within another
int8      the emulation's of the arithmetic that L1 found, within its noise floor; where a linear's arithmetic is not
          stated, the float reference's, within a multiple of what int8 costs, and "not verified"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlqat.devices.device import Setting
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check import divergence
from dlqat.runtime_tests.check.divergence import Divergence
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.reference.arithmetic import FLOAT, PER_TOKEN
from dlqat.runtime_tests.reference.model import Nudge

Logits = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reading:
    """A text, the positions at which the runtime was asked, and its rows [positions, vocab]."""

    ids: Sequence[int]
    at: Sequence[int]
    rows: Logits


@dataclass(frozen=True, eq=False)
class Verdict:
    """`fault`: why the rows are wrong, or None; `doubts`: why they could not be judged finely."""

    total: Divergence
    fault: str | None
    doubts: list[str]
    figures: dict[str, Any]
    floor: Sequence[Divergence] = ()
    """What runs that are as right have, under int8."""


def judge(proof: Proof, setting: Setting, readings: Sequence[Reading]) -> Verdict:
    """All readings together."""
    reference = proof.reference
    match setting.activations:
        case "float":
            total = _compare(readings, reference.logits)
            return Verdict(total, divergence.float_fault(total), [], asdict(total))
        case "float16":
            total = _compare(readings, lambda ids: reference.logits(ids, rotary=torch.float16), tolerances.FLOAT16_TIE)
            return Verdict(total, divergence.float_fault(total, tolerances.FLOAT16_KL_MAX), [], asdict(total))
        case "int8":
            return _int8(proof, setting, readings)


def _int8(proof: Proof, setting: Setting, readings: Sequence[Reading]) -> Verdict:
    found = proof.arithmetics(setting)
    unknown = sorted(name for name, arithmetic in found.items() if arithmetic is None)
    got, others = list[divergence.PerPosition](), list[list[divergence.PerPosition]]()
    for reading in readings:
        expected, *more = (run[list(reading.at)] for run in _runs(proof, setting, reading.ids))
        got.append(divergence.compare(expected, reading.rows))
        others.append([divergence.compare(expected, other) for other in more])
    total = divergence.summarize(divergence.pool(got))
    floor = [divergence.summarize(divergence.pool(rows)) for rows in zip(*others, strict=True)]
    if unknown:
        doubts = [f"the arithmetic of {unknown[0]} is not stated"]
        figures = asdict(total) | {"int8_per_token": asdict(floor[0])}
        return Verdict(total, divergence.unstated_fault(total, floor[0]), doubts, figures)
    figures = asdict(total) | {"noise_floor": [asdict(f) for f in floor]}
    return Verdict(total, divergence.int8_fault(total, floor), [], figures, floor)


def _runs(proof: Proof, setting: Setting, ids: Sequence[int]) -> Iterator[Logits]:
    """Logits of a text as they should be, then of runs that are as right: the nudged ones; or float, then int8 per token."""
    reference, found = proof.reference, proof.arithmetics(setting)
    if None in found.values():
        yield reference.logits(ids)
        yield reference.emulated(ids, lambda n: found.get(n) or PER_TOKEN)
        return
    for nudge in (None, *(Nudge(tolerances.NUDGE, seed) for seed in range(tolerances.NUDGES))):
        yield reference.emulated(ids, lambda n: found.get(n) or FLOAT, nudge)


def _compare(
    readings: Sequence[Reading], expected: Callable[[Sequence[int]], Logits], tie: float = tolerances.TIE
) -> Divergence:
    rows = [divergence.compare(expected(r.ids)[list(r.at)], r.rows, tie) for r in readings]
    return divergence.summarize(divergence.pool(rows))
