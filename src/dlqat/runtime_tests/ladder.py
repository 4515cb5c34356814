# SPDX-License-Identifier: Apache-2.0
"""The parity ladder: every rung as a function from a Proof to judged Checks.

    L0  files as written, integers equal, the reference itself equal
    L1  every linear alone, in every setting of the device
    L2  logits, in every setting
    L3  greedy text and where it stops
    L4  accuracy of the artifact: dlqat-eval, not run here
    L5  negative controls of L0 and L2

A rung that raises DeviceFailure or Unreadable has failed, with that sentence; the next rungs go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlqat import folded
from dlqat.devices import artifact as artifacts
from dlqat.devices.artifact import Artifact
from dlqat.devices.device import Device, DeviceFailure, Session, Setting
from dlqat.runtime_tests import controls, greedy, integers, linears, parity, prompts, readers, tolerances
from dlqat.runtime_tests.arithmetic import FLOAT, Arithmetic
from dlqat.runtime_tests.integers import Wanted
from dlqat.runtime_tests.parity import Divergence, Plan, Rows
from dlqat.runtime_tests.readers.reader import Contents, Unreadable, parts
from dlqat.runtime_tests.reference import Nudge, Reference
from dlqat.runtime_tests.report import Check

ACTIVATION_ROWS = 17
"""Rows of real activations per linear: one more than the 16 at which kernels change their tiling."""


@dataclass(eq=False)
class Proof:
    """What the rungs share. Costly parts are made when first needed and kept."""

    artifact: Artifact
    reference: Reference
    device: Device
    threads: int
    quick: bool
    progress: Callable[[str], None]
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def contents(self) -> Contents:
        return readers.read(self.artifact.program)

    @cached_property
    def wanted(self) -> Wanted:
        return integers.wanted(self.reference.model)

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        found = self.device.settings(self.artifact.program, self.threads)
        return found[:1] if self.quick else found

    @cached_property
    def plans(self) -> list[Plan]:
        """The plans that fit into the model's context."""
        return [p for p in (parity.QUICK if self.quick else parity.PLANS) if p.length <= self.reference.max_positions]

    @cached_property
    def texts(self) -> list[list[int]]:
        folder, vocabulary = self.reference.folder, self.reference.vocab_size
        found = prompts.texts(folder, vocabulary, max(p.length for p in self.plans))
        return found[:1] if self.quick else found

    @cached_property
    def expected(self) -> list[NDArray[np.float32]]:
        """The reference's logits of every text."""
        return [self.reference.logits(ids) for ids in self.texts]

    @cached_property
    def activations(self) -> dict[str, torch.Tensor]:
        return self.reference.activations(self.texts[0][:ACTIVATION_ROWS])

    def open(self, setting: Setting) -> Session:
        return self.device.open(self.artifact.program, setting)

    def linears(self, setting: Setting) -> list[linears.Linear]:
        """Rung L1's measurement under a setting, once."""
        if setting not in self._linears:
            found: list[linears.Linear] = []
            for linear in linears.check(self.contents, self.wanted, self.activations, self.device, setting):
                self.progress(f"{setting}: {linear.name}")
                found.append(linear)
            self._linears[setting] = found
        return self._linears[setting]

    @cached_property
    def _linears(self) -> dict[Setting, list[linears.Linear]]:
        return {}


def files(proof: Proof) -> Iterator[Check]:
    """L0: every file is the one that manifest.json describes."""
    listed = proof.artifact.manifest.get("files")
    if not listed:
        yield Check("L0", "files", "not verified", "there is no manifest.json with checksums beside the program")
        return
    damage = list(artifacts.damage(proof.artifact))
    yield _judged(
        "L0", "files", damage, f"{len(listed)} files have the checksums of manifest.json", {"files": len(listed)}
    )


def integers_equal(proof: Proof) -> Iterator[Check]:
    """L0: codes, scales, zero-points, labels and float parameters of each program are those of folded/."""
    for program in proof.artifact.programs:
        contents = proof.contents if program == proof.artifact.program else readers.read(program)
        result = integers.compare(contents, proof.wanted, proof.progress)
        figures = {k: v for k, v in asdict(result).items() if k != "differences"} | {"form": contents.form}
        good = (
            f"{result.codes:,} codes, {result.scales:,} scales, {result.zero_points:,} zero-points and "
            f"{result.floats:,} float parameters equal, bit for bit, in {result.weights} multiplications"
        )
        yield _judged("L0", f"integers of {program.name}", [str(d) for d in result.differences], good, figures)


def reference_equal(proof: Proof) -> Iterator[Check]:
    """L0: what transformers multiplies with is what the integers mean (law 3, on this very folder)."""
    model = proof.reference.model
    _ = proof.expected  # the first forward unpacks the weights
    wrong: list[str] = []
    for name in model.layers:
        proof.progress(name)
        if not torch.equal(proof.reference.weight(name).float(), folded.dense(model.layers[name])):
            wrong.append(f"{name}: transformers has another weight than its integers mean")
    yield _judged("L0", "reference", wrong, f"transformers holds the same {len(model.layers)} weights, bit for bit", {})


def each_linear(proof: Proof) -> Iterator[Check]:
    """L1, one check per setting."""
    for setting in proof.settings:
        found = proof.linears(setting)
        reasons = [r for x in found if (r := linears.status(x, setting)) is not None]
        failed = [r.removeprefix("failed: ") for r in reasons if r.startswith("failed")]
        open_ones = [r.removeprefix("not verified: ") for r in reasons if not r.startswith("failed")]
        worst = max(found, key=lambda x: x.error)
        kinds = ", ".join(sorted({str(x.arithmetic) for x in found if x.arithmetic is not None}))
        figures = {
            "linears": len(found),
            "worst": worst.name,
            "worst_relative_error": worst.error,
            "arithmetic": kinds,
            "lowest_sqnr_to_float_db": min(linears.sqnr(x.float_error) for x in found),
        }
        good = f"{len(found)} linears, worst relative error {worst.error:.1e} ({worst.name}); {kinds}"
        yield _judged("L1", str(setting), failed, good, figures, open_ones)


def logits(proof: Proof) -> Iterator[Check]:
    """L2, one check per setting."""
    for setting in proof.settings:
        yield from _logits_int8(proof, setting) if setting.activations == "int8" else _logits_float(proof, setting)


def _logits_float(proof: Proof, setting: Setting) -> Iterator[Check]:
    rows, table = _measure(proof, setting, proof.expected)
    total = parity.summarize(rows)
    fault = parity.float_fault(total)
    yield _judged("L2", str(setting), [fault] if fault else [], _figures_line(total), asdict(total), table=table)


def _logits_int8(proof: Proof, setting: Setting) -> Iterator[Check]:
    """Against the emulation of the runtime's arithmetic, within the noise floor of that emulation."""
    name = str(setting)
    found = {part: x.arithmetic for x in proof.linears(setting) for part in parts(x.name)}
    unknown = sorted(n for n, arithmetic in found.items() if arithmetic is None)
    if unknown:
        yield Check(
            "L2", name, "not verified", f"the arithmetic of {len(unknown)} linears is not stated ({unknown[0]}, ...)"
        )
        return

    def arithmetic(path: str) -> Arithmetic:
        return found.get(path) or FLOAT

    proof.progress(f"{name}: emulation")
    emulated = [proof.reference.emulated(ids, arithmetic) for ids in proof.texts]
    floors: list[Divergence] = []
    for seed in range(tolerances.NUDGES):
        proof.progress(f"{name}: noise floor {seed + 1} of {tolerances.NUDGES}")
        nudge = Nudge(tolerances.NUDGE, seed)
        nudged = [proof.reference.emulated(ids, arithmetic, nudge) for ids in proof.texts]
        floors.append(parity.summarize(_pool_plans(proof, emulated, nudged)))
    rows, table = _measure(proof, setting, emulated)
    total = parity.summarize(rows)
    fault = parity.int8_fault(total, floors)
    floor = {"kl_mean": max(f.kl_mean for f in floors), "kl_p99": max(f.kl_p99 for f in floors)}
    cost = parity.summarize(_pool_plans(proof, proof.expected, emulated))
    figures = asdict(total) | {"noise_floor": [asdict(f) for f in floors], "int8_against_float": asdict(cost)}
    good = f"{_figures_line(total)}; noise floor: KL mean {floor['kl_mean']:.1e}, p99 {floor['kl_p99']:.1e}"
    yield _judged("L2", name, [fault] if fault else [], good, figures, table=table)


def _measure(
    proof: Proof, setting: Setting, expected: Sequence[NDArray[np.float32]]
) -> tuple[Rows, list[dict[str, Any]]]:
    """Rows of all plans and texts, and the figures per plan."""
    by_plan: dict[str, list[Rows]] = {}
    with closing(proof.open(setting)) as session:
        for ids, wanted in zip(proof.texts, expected, strict=True):
            for plan in proof.plans:
                proof.progress(f"{setting}: {plan.name}")
                rows = parity.compare(wanted[: plan.length], parity.feed(session, ids, plan))
                by_plan.setdefault(plan.name, []).append(rows)
        proof.facts[str(setting)] = dict(session.facts())
    table = [{"plan": name} | asdict(parity.summarize(parity.pool(rows))) for name, rows in by_plan.items()]
    return parity.pool([r for rows in by_plan.values() for r in rows]), table


def _pool_plans(proof: Proof, a: Sequence[NDArray[np.float32]], b: Sequence[NDArray[np.float32]]) -> Rows:
    """Two sets of logits, every position as often as the plans visit it."""
    whole = [parity.compare(x, y) for x, y in zip(a, b, strict=True)]
    return parity.pool([parity.first(rows, plan.length) for rows in whole for plan in proof.plans])


def text(proof: Proof) -> Iterator[Check]:
    """L3 with the program that apps run, under the first setting (float activations)."""
    setting, reference = proof.settings[0], proof.reference
    found: list[greedy.Text] = []
    asked = prompts.prompts(reference.folder, reference.vocab_size)
    room = reference.max_positions - max(len(p) for p in asked)
    with closing(proof.device.open(proof.artifact.generator, setting)) as session:
        for number, prompt in enumerate(asked, 1):
            proof.progress(f"prompt {number} of {len(asked)}")
            written = greedy.write(session, prompt, reference.eos, min(tolerances.GREEDY_TOKENS, room))
            found.append(greedy.judge(prompt, written, reference.eos, reference.logits([*prompt, *written])))
    wrong = [f"prompt {i}: {t.wrong}" for i, t in enumerate(found) if t.wrong_step is not None]
    tokens, ties = sum(t.tokens for t in found), sum(len(t.ties) for t in found)
    good = f"{tokens} tokens on {len(found)} prompts equal" + (f", {ties} of them ties" if ties else "")
    yield _judged("L3", "greedy text", wrong, good, {"prompts": len(found), "tokens": tokens, "ties": ties})
    stops = sum(t.stopped for t in found)
    yield _stops(proof, stops, len(found))


def _stops(proof: Proof, stops: int, asked: int) -> Check:
    eos = list(proof.reference.eos)
    stated: dict[str, Any] = {}
    for name, keys in (("genai_config.json", ("model", "eos_token_id")), ("generation_config.json", ("eos_token_id",))):
        content: Any = artifacts.read_json(proof.artifact.folder / name)
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        if content is not None:
            stated[name] = content if isinstance(content, list) else [content]
    wrong = [f"{name} stops at {ids}, folded/ at {eos}" for name, ids in stated.items() if set(ids) != set(eos)]
    figures = {"eos": eos, "stopped": stops, "stated": stated}
    doubts = [] if stops else [f"none of the {asked} texts reached an end-of-text token"]
    return _judged(
        "L3", "stops", wrong, f"{stops} of {asked} texts end with EOS {eos}, as the reference's do", figures, doubts
    )


def accuracy(proof: Proof) -> Iterator[Check]:
    """L4 is dlqat-eval's work."""
    del proof
    yield Check("L4", "accuracy", "not verified", "perplexity and tasks of the artifact are measured by dlqat-eval")


def negative_controls(proof: Proof) -> Iterator[Check]:
    """L5: what L0 and L2 say of damaged copies."""
    for control in controls.check_integers(proof.artifact, proof.contents, proof.wanted):
        status = "passed" if control.answer else "failed"
        yield Check("L5", "L0 notices", status, f"{control.what}: {control.answer or 'not noticed'}")
    if not proof.quick:
        yield from _sensitivity(proof)


def _sensitivity(proof: Proof) -> Iterator[Check]:
    weight = controls.target(proof.contents, "scales")
    if weight is None:
        yield Check("L5", "L2 notices", "not verified", "no linear's scales have a place of their own in the files")
        return
    plan, table = parity.QUICK[0], list[dict[str, Any]]()
    for factor in controls.FACTORS:
        proof.progress(f"scale times {factor}")
        with controls.altered(proof.artifact, weight.spans["scales"], controls.times(factor)) as copy:
            with closing(proof.device.open(copy.program, proof.settings[0])) as session:
                got = parity.feed(session, proof.texts[0], plan)
        found = parity.summarize(parity.compare(proof.expected[0][: plan.length], got))
        table.append({"factor": factor, "kl_max": found.kl_max, "noticed": parity.float_fault(found) is not None})
    noticed = [row["factor"] for row in table if row["noticed"]]
    wrong = (
        []
        if tolerances.NOTICED in noticed
        else [f"{weight.name}: its largest scale times {tolerances.NOTICED:g} passes L2"]
    )
    good = f"one scale of {weight.name} times {min(noticed, default=0):.4g} is noticed"
    yield _judged("L5", "L2 notices", wrong, good, {"weight": weight.name}, table=table)


RUNGS: dict[str, Sequence[Callable[[Proof], Iterator[Check]]]] = {
    "L0": (files, integers_equal, reference_equal),
    "L1": (each_linear,),
    "L2": (logits,),
    "L3": (text,),
    "L4": (accuracy,),
    "L5": (negative_controls,),
}
QUICK = ("L0", "L2")


def run(proof: Proof, rungs: Sequence[str]) -> Iterator[Check]:
    """The checks of the rungs, as they are judged."""
    for rung in rungs:
        for check in RUNGS[rung]:
            proof.progress(str(check.__doc__).partition("\n")[0])
            try:
                yield from check(proof)
            except (DeviceFailure, Unreadable) as failure:
                yield Check(rung, check.__name__.replace("_", " "), "failed", str(failure))


def _judged(
    rung: str,
    name: str,
    wrong: Sequence[str],
    good: str,
    figures: dict[str, Any],
    doubts: Sequence[str] = (),
    table: Sequence[dict[str, Any]] = (),
) -> Check:
    """Failed if anything is wrong (the first, worst, is told), else not verified if anything is in doubt."""
    for status, reasons in (("failed", wrong), ("not verified", doubts)):
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            listed = {**figures, "reasons": list(reasons[:100])}
            return Check(rung, name, status, f"{reasons[0]}{more}", listed, table)
    return Check(rung, name, "passed", good, figures, table)


def _figures_line(d: Divergence) -> str:
    ties = f", {d.ties} ties" if d.ties else ""
    return (
        f"KL mean {d.kl_mean:.1e}, p99 {d.kl_p99:.1e}, max {d.kl_max:.1e}; largest difference {d.max_abs:.2g}; "
        f"top-1 {d.top1:.1%}{ties} of {d.positions} positions"
    )
