# SPDX-License-Identifier: Apache-2.0
"""L4: accuracy of the artifact, as dlqat-eval measured it on this device. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dlqat.devices import artifact as artifacts
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.fingerprint import fingerprint, result_path
from dlqat.runtime_tests.proof import Proof
from dlqat.runtime_tests.report import Check, Status


def result(proof: Proof) -> Mapping[str, Any] | None:
    """The result file, if it is about these bytes on this device."""
    found = artifacts.read_json(result_path(proof.artifact.folder, proof.device.name))
    same = found.get("program", {}).get("sha256") == fingerprint(proof.artifact) if found else False
    return found if same else None


def accuracy(proof: Proof) -> Iterator[Check]:
    """L4, one check per task and metric."""
    where = result_path(proof.artifact.folder, proof.device.name)
    found = result(proof)
    if found is None:
        why = f"{where.name} is about other bytes" if where.exists() else "perplexity and tasks were not measured"
        yield Check("L4", "accuracy", "not verified", f"{why}: dlqat-eval measures them")
        return
    if text := found["text"]:
        gap = text.get("difference_nats")
        yield _judged("perplexity", _worse(gap), tolerances.PERPLEXITY_NATS, f"{text['tokens']} tokens", "nats", text)
    for task, metrics in found["tasks"].items():
        for metric, row in metrics.items():
            worse, size = _worse(row.get("difference")), f"{row['questions']} questions"
            yield _judged(f"{task} {metric}", worse, tolerances.ACCURACY_POINTS, size, "of all", row)


def _worse(difference: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The interval as low and high of "the artifact is worse by"; NLL is larger, a share smaller, when worse."""
    if not difference or difference["low"] is None or difference["high"] is None:
        return None
    if "better" in difference:
        return -difference["high"], -difference["low"]
    return difference["low"], difference["high"]


def _judged(
    name: str, worse: tuple[float, float] | None, limit: float, size: str, unit: str, figures: Mapping[str, Any]
) -> Check:
    if worse is None:
        return Check("L4", name, "not verified", f"{size}: there is no interval against the reference", figures)
    low, high = worse
    status: Status = "failed" if low > limit else "passed" if high <= limit else "not verified"
    shown = (
        f"{size}: worse than the reference by between {low:+.2g} and {high:+.2g} {unit} (95 %), the limit is {limit:g}"
    )
    more = "; ask more questions to tell" if status == "not verified" else ""
    return Check("L4", name, status, shown + more, figures)
