# SPDX-License-Identifier: Apache-2.0
"""L2: logits of the artifact against the reference's, in every setting of the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlqat import architecture, tested
from dlqat.devices.device import DeviceFailure, Setting
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check import divergence
from dlqat.runtime_tests.check.divergence import Divergence, PerPosition
from dlqat.runtime_tests.check.proof import Proof, judged
from dlqat.runtime_tests.reference.arithmetic import FLOAT, PER_TOKEN, Arithmetic
from dlqat.runtime_tests.reference.model import Nudge
from dlqat.runtime_tests.report.record import Check


def logits(proof: Proof) -> Iterator[Check]:
    """L2, one check per setting."""
    for setting in proof.settings:
        try:
            match setting.activations:
                case "float":
                    yield from _logits_float(proof, setting)
                case "float16":
                    yield from _logits_float16(proof, setting)
                case "int8":
                    yield from _logits_int8(proof, setting)
        except DeviceFailure as failure:  # of this setting: the next may run
            yield Check("L2", str(setting), "failed", str(failure))
    yield from _left_open(proof)
    yield from _known(proof)
    if proof.dropped:
        names = ", ".join(plan.name for plan in proof.dropped)
        yield Check("L2", "lengths", "not verified", f"a context of {proof.positions} tokens has no room for {names}")


def _left_open(proof: Proof) -> Iterator[Check]:
    """What the device itself says that it cannot show (an interpreter is not the phone)."""
    found: dict[str, str] = {}
    for setting in proof.settings:
        found |= proof.facts.get(str(setting), {}).get("not_verified", {})
    for what, why in found.items():
        yield Check("L2", what, "not verified", why)


def _known(proof: Proof) -> Iterator[Check]:
    """What is known against the version of the runtime that ran."""
    form, bits = (
        proof.artifact.manifest.form,
        {spec.bits for spec in proof.reference.model.specs.values()},
    )
    capped = bool(architecture.read(proof.reference.model.config).caps())
    ran = {str(proof.facts.get(str(setting), {}).get("runtime", "")) for setting in proof.settings}
    for runtime in sorted(ran):
        name, _, version = runtime.partition(" ")
        if (why := tested.known(name, version, form, bits, capped=capped)) is not None:
            yield Check("L2", runtime, "not verified", why)


def _logits_float(proof: Proof, setting: Setting) -> Iterator[Check]:
    rows, table = _measure(proof, setting, proof.expected)
    total = divergence.summarize(rows)
    fault = divergence.float_fault(total)
    figures = asdict(total) | {"kl_histogram": divergence.histogram(rows)}
    yield judged("L2", str(setting), [fault] if fault else [], figures_line(total), figures, table=table)


def _logits_float16(proof: Proof, setting: Setting) -> Iterator[Check]:
    """Against the reference with the rotary tables that such a runtime has, within what float16 rounding explains."""
    expected = [proof.reference.logits(ids, rotary=torch.float16) for ids in proof.texts]
    rows, table = _measure(proof, setting, expected, tolerances.FLOAT16_TIE)
    total = divergence.summarize(rows)
    fault = divergence.float_fault(total, tolerances.FLOAT16_KL_MAX)
    tables = divergence.summarize(_pool_plans(proof, proof.expected, expected))
    figures = asdict(total) | {"rotary_tables_in_float16": asdict(tables)}
    yield judged("L2", str(setting), [fault] if fault else [], figures_line(total), figures, table=table)


def _logits_int8(proof: Proof, setting: Setting) -> Iterator[Check]:
    """Against the emulation of the runtime's arithmetic, within the noise floor of that emulation."""
    name = str(setting)
    found = proof.arithmetics(setting)
    if unknown := sorted(n for n, arithmetic in found.items() if arithmetic is None):
        yield _logits_unstated(proof, setting, found, unknown)
        return

    def arithmetic(path: str) -> Arithmetic:
        return found.get(path) or FLOAT

    proof.progress(f"{name}: emulation")
    emulated = [proof.reference.emulated(ids, arithmetic) for ids in proof.texts]
    floors: list[Divergence] = []
    floor_rows: list[PerPosition] = []
    for seed in range(tolerances.NUDGES):
        proof.progress(f"{name}: noise floor {seed + 1} of {tolerances.NUDGES}")
        nudge = Nudge(tolerances.NUDGE, seed)
        nudged = [proof.reference.emulated(ids, arithmetic, nudge) for ids in proof.texts]
        floor_rows.append(_pool_plans(proof, emulated, nudged))
        floors.append(divergence.summarize(floor_rows[-1]))
    rows, table = _measure(proof, setting, emulated)
    total = divergence.summarize(rows)
    fault = divergence.int8_fault(total, floors)
    floor = {"kl_mean": max(f.kl_mean for f in floors), "kl_p99": max(f.kl_p99 for f in floors)}
    cost = divergence.summarize(_pool_plans(proof, proof.expected, emulated))
    figures = asdict(total) | {"noise_floor": [asdict(f) for f in floors], "int8_against_float": asdict(cost)}
    figures["kl_histogram"] = divergence.histogram(rows)
    figures["floor_histogram"] = divergence.histogram(divergence.pool(floor_rows))
    good = f"{figures_line(total)}; noise floor: KL mean {floor['kl_mean']:.1e}, p99 {floor['kl_p99']:.1e}"
    yield judged("L2", name, [fault] if fault else [], good, figures, table=table)


def _logits_unstated(
    proof: Proof, setting: Setting, found: Mapping[str, Arithmetic | None], unknown: Sequence[str]
) -> Check:
    """Against the float reference: gross errors are seen whatever the rounding is, finer ones not."""
    coarse = [proof.reference.emulated(ids, lambda n: found.get(n) or PER_TOKEN) for ids in proof.texts]
    rows, table = _measure(proof, setting, proof.expected)
    total, cost = divergence.summarize(rows), divergence.summarize(_pool_plans(proof, proof.expected, coarse))
    fault = divergence.unstated_fault(total, cost)
    doubt = (
        f"the arithmetic of {len(unknown)} linears is not stated ({unknown[0]}, ...); KL to float {total.kl_mean:.1e} on "
        f"average, int8 per token costs {cost.kl_mean:.1e}"
    )
    figures = asdict(total) | {"int8_per_token": asdict(cost)}
    return judged("L2", str(setting), [fault] if fault else [], "", figures, [doubt], table)


def _measure(
    proof: Proof, setting: Setting, expected: Sequence[NDArray[np.float32]], tie: float = tolerances.TIE
) -> tuple[PerPosition, list[dict[str, Any]]]:
    """Rows of all plans and texts, and the figures per plan."""
    by_plan: dict[str, list[PerPosition]] = {}
    with closing(proof.open(setting)) as session:
        for ids, wanted in zip(proof.texts, expected, strict=True):
            for plan in proof.plans_of(ids):
                proof.progress(f"{setting}: {plan.name}")
                rows = divergence.compare(wanted[: plan.length], divergence.feed(session, ids, plan), tie)
                by_plan.setdefault(plan.name, []).append(rows)
        facts = dict(session.facts())
        if "emulation" not in facts:  # an emulator's speed says nothing
            facts["timings"] = asdict(session.timings)
        proof.facts[str(setting)] = facts
    table = [{"plan": name} | asdict(divergence.summarize(divergence.pool(rows))) for name, rows in by_plan.items()]
    return divergence.pool([r for rows in by_plan.values() for r in rows]), table


def _pool_plans(proof: Proof, a: Sequence[NDArray[np.float32]], b: Sequence[NDArray[np.float32]]) -> PerPosition:
    """Two sets of logits, every position as often as the plans visit it."""
    whole = [divergence.compare(x, y) for x, y in zip(a, b, strict=True)]
    pairs = ((rows, plan) for rows, ids in zip(whole, proof.texts, strict=True) for plan in proof.plans_of(ids))
    return divergence.pool([divergence.first(rows, plan.length) for rows, plan in pairs])


def figures_line(d: Divergence) -> str:
    ties = f", {d.ties} ties" if d.ties else ""
    return (
        f"KL mean {d.kl_mean:.1e}, p99 {d.kl_p99:.1e}, max {d.kl_max:.1e}; largest difference {d.max_abs:.2g}; "
        f"top-1 {d.top1:.1%}{ties} of {d.positions} positions"
    )
