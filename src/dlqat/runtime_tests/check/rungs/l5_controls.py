# SPDX-License-Identifier: Apache-2.0
"""L5: negative controls. What L0 and L2 say of artifacts that were damaged on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from dlqat.devices.device import NoProducts
from dlqat.runtime_tests import readers, tolerances
from dlqat.runtime_tests.check import controls, divergence, linears
from dlqat.runtime_tests.check.proof import Proof, judged
from dlqat.runtime_tests.report.record import Check


def negative_controls(proof: Proof) -> Iterator[Check]:
    """L5: what L0 and L2 say of damaged copies."""
    for control in controls.check_integers(proof.artifact, proof.contents, proof.wanted):
        status = "passed" if control.answer else "failed"
        yield Check("L5", "L0 notices", status, f"{control.what}: {control.answer or 'not noticed'}")
    if not proof.quick:
        floats = proof.settings[0].activations == "float"
        yield from _sensitivity(proof) if floats else _sensitivity_int8(proof)


def _sensitivity_int8(proof: Proof) -> Iterator[Check]:
    """Where every product has int8 activations, L2 is as blunt as they are chaotic: L1 must notice."""
    weight, setting = controls.target(proof.contents, "scales"), proof.settings[0]
    if weight is None:
        yield Check("L5", "L1 notices", "not verified", "no linear's scales have a place of their own in the files")
        return
    span, table = weight.spans["scales"], list[dict[str, Any]]()
    try:
        known = linears.stated(proof.linears(setting))
    except NoProducts as reason:
        yield Check("L5", "L1 notices", "not verified", str(reason))
        return
    for factor in controls.FACTORS:
        proof.progress(f"scale times {factor}")
        with controls.altered(proof.artifact, span, controls.times(factor, span.dtype)) as copy:
            changed = replace(proof.contents, weights=controls.same(readers.read(copy.program), weight))
            found = next(linears.check(changed, proof.wanted, proof.activations, proof.device, setting))
        noticed = (linears.status(found, setting, known) or "").startswith("failed")
        table.append({"factor": factor, "error": found.error, "noticed": noticed})
    factors = [row["factor"] for row in table if row["noticed"]]
    wrong = [] if tolerances.NOTICED in factors else [f"{weight.name}: a scale times {tolerances.NOTICED:g} passes L1"]
    good = f"one scale of {weight.name} times {min(factors, default=0):.4g} is noticed"
    yield judged("L5", "L1 notices", wrong, good, {"weight": weight.name}, table=table)


def _sensitivity(proof: Proof) -> Iterator[Check]:
    weight = controls.target(proof.contents, "scales")
    if weight is None:
        yield Check("L5", "L2 notices", "not verified", "no linear's scales have a place of their own in the files")
        return
    table = list[dict[str, Any]]()
    plan = divergence.QUICK[0] if divergence.QUICK[0].length <= proof.positions else proof.plans[-1]
    for factor in controls.FACTORS:
        proof.progress(f"scale times {factor}")
        with (
            controls.altered(
                proof.artifact, weight.spans["scales"], controls.times(factor, weight.spans["scales"].dtype)
            ) as copy,
            closing(proof.device.open(copy.program, proof.settings[0])) as session,
        ):
            got = divergence.feed(session, proof.texts[0], plan)
        found = divergence.summarize(divergence.compare(proof.expected[0][: plan.length], got))
        table.append({"factor": factor, "kl_max": found.kl_max, "noticed": divergence.float_fault(found) is not None})
    noticed = [row["factor"] for row in table if row["noticed"]]
    wrong = (
        []
        if tolerances.NOTICED in noticed
        else [f"{weight.name}: its largest scale times {tolerances.NOTICED:g} passes L2"]
    )
    good = f"one scale of {weight.name} times {min(noticed, default=0):.4g} is noticed"
    yield judged("L5", "L2 notices", wrong, good, {"weight": weight.name}, table=table)
