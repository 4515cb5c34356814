# SPDX-License-Identifier: Apache-2.0
"""L4: accuracy of the artifact, as dlqat-eval measured it on this device. Nothing is measured here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from dlqat import artifact as artifacts
from dlqat.refusal import Refusal
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.eval import schema
from dlqat.runtime_tests.eval.fingerprint import fingerprint, of_reference, of_session, result_path
from dlqat.runtime_tests.eval.journal import digest
from dlqat.runtime_tests.report import versions
from dlqat.runtime_tests.report.eval_table import is_share
from dlqat.runtime_tests.report.record import Check, Status, show


@dataclass(frozen=True, slots=True)
class Limit:
    """How much worse is allowed, and what helps where the interval is too wide to tell."""

    value: float
    unit: str
    advice: str


PERPLEXITY = Limit(tolerances.PERPLEXITY_NATS, "nats", "give more text")
SHARE = Limit(tolerances.ACCURACY_POINTS, "of all", "ask more questions")


def result(proof: Proof) -> Mapping[str, Any] | None:
    """The result file, if it is about these bytes on this device, and nothing is another now."""
    found = _of_these_bytes(proof)
    return None if found is None or next(_others(proof, found), None) else found


def _of_these_bytes(proof: Proof) -> Mapping[str, Any] | None:
    found = list[Mapping[str, Any]]()
    for path in _places(proof):
        with contextlib.suppress(Refusal):  # damaged: as if it were not there
            found.append(schema.checked(artifacts.read_json(path), path))
    stated = [(content, its) for content in found if (its := _digest(content))]
    own = fingerprint(proof.artifact) if stated else None  # of hundreds of megabytes: once
    return next((content for content, its in stated if its == own), None)


def _digest(content: Mapping[str, Any]) -> Any:
    program: Any = content.get("program")
    return cast("Any", program).get("sha256") if isinstance(program, dict) else None


def _others(proof: Proof, found: Mapping[str, Any]) -> Iterator[str]:
    """What is another now than when it was measured: the reference, a version, the phone that rung L2 saw."""
    if found.get("reference") and found.get("reference_sha256") != of_reference(proof.reference.folder):
        yield f"it does not say that its reference, {found['reference']}, had the weights of {proof.reference.folder}"
    told = found.get("facts", {}).get(proof.device.name, {})
    seen = proof.facts.get(found["setting"], told)
    for there, here in ((found.get("versions", {}), versions.installed()), (of_session(told), of_session(seen))):
        for name in (n for n in there if n in here and digest(there[n]) != digest(here[n])):
            yield f"{name} was {show(there[name])} when it was measured, and is {show(here[name])} now"


def _places(proof: Proof) -> list[Path]:
    """Where dlqat-eval may have left it: with the report of this check, or in the artifact."""
    return [result_path(f, proof.device.name) for f in (proof.results, proof.artifact.folder) if f is not None]


def accuracy(proof: Proof) -> Iterator[Check]:
    """L4, one check per task and metric."""
    found = _of_these_bytes(proof)
    if found is None:
        there = next((p.name for p in _places(proof) if p.exists()), None)
        why = f"{there} is about other bytes, or damaged" if there else "perplexity and tasks were not measured"
        yield Check("L4", "accuracy", "not verified", f"{why}: dlqat-eval measures them")
        return
    if others := list(_others(proof, found)):
        why = f"eval-{proof.device.name}.json: {others[0]}; dlqat-eval measures again"
        yield Check("L4", "accuracy", "not verified", why, {"reasons": others})
        return
    if text := found.get("text"):
        gap = text.get("difference_nats")
        size = f"{text['tokens']} tokens"
        check = _judged("perplexity", _worse(gap, higher_is_better=False), PERPLEXITY, size, text)
        yield _with_cause(check, found["setting"])
    for task, metrics in found["tasks"].items():
        if not metrics:
            why = f"its figures are no means over questions, so there is no interval; eval-{proof.device.name}.json has them"
            yield Check("L4", task, "not verified", why)
        for metric, row in metrics.items():
            name, size = f"{task} {metric}", f"{row['questions']} questions"
            if "artifact" in row and not is_share(row):
                yield Check("L4", name, "not verified", f"{size}: no share of right answers, so there is no limit", row)
                continue
            higher = row.get("higher_is_better", True)
            if higher is None:
                yield Check(
                    "L4", name, "not verified", f"{size}: lm_eval does not say whether more of it is better", row
                )
                continue
            worse = _worse(row.get("difference"), higher_is_better=higher)
            check = _judged(name, worse, SHARE, size, row)
            yield _with_cause(check, found["setting"])


def _with_cause(check: Check, setting: str) -> Check:
    """What else than the artifact may be behind a difference: the reference has float activations."""
    if check.status == "passed" or not setting.startswith("int8"):
        return check
    cause = (
        "; the reference multiplies in float, so what int8 activations cost is part of it (L1 and L2 are without it)"
    )
    return replace(check, summary=check.summary + cause)


def _worse(difference: Mapping[str, Any] | None, *, higher_is_better: bool) -> tuple[float, float] | None:
    """The interval as low and high of "the artifact is worse by"."""
    low, high = ((difference or {}).get(key) for key in ("low", "high"))
    if low is None or high is None:
        return None
    return (-high, -low) if higher_is_better else (low, high)


def _judged(name: str, worse: tuple[float, float] | None, limit: Limit, size: str, figures: Mapping[str, Any]) -> Check:
    if worse is None:
        return Check("L4", name, "not verified", f"{size}: there is no interval against the reference", figures)
    low, high = worse
    status: Status = "failed" if low > limit.value else "passed" if high <= limit.value else "not verified"
    shown = (
        f"{size}: worse than the reference by between {low:+.2g} and {high:+.2g} {limit.unit} (95 %), "
        f"the limit is {limit.value:g}"
    )
    more = f"; {limit.advice} to tell" if status == "not verified" else ""
    return Check("L4", name, status, shown + more, figures)
