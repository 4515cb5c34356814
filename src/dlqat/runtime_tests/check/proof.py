# SPDX-License-Identifier: Apache-2.0
"""One run of the proof: what all rungs share, and how a finding becomes a judged Check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlqat.artifact import Artifact
from dlqat.devices.device import Device, NoProducts, Session, Setting
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import divergence, integers, linears, prompts
from dlqat.runtime_tests.check.divergence import FeedPlan
from dlqat.runtime_tests.check.integers import Wanted
from dlqat.runtime_tests.readers.contents import Contents, parts
from dlqat.runtime_tests.reference.arithmetic import LLAMACPP, Arithmetic
from dlqat.runtime_tests.reference.model import Reference
from dlqat.runtime_tests.report.record import Check, Status

ACTIVATION_ROWS = 17
"""Rows of real activations per linear: one more than the 16 at which kernels change their tiling."""

ELSEWHERE = {"gguf": LLAMACPP}
"""Format -> the arithmetic that L1 finds on its host device (without zero-points), for devices that run no product alone."""


@dataclass(eq=False)
class Proof:
    """What the rungs share. Costly parts are made when first needed and kept."""

    artifact: Artifact
    reference: Reference
    device: Device
    threads: int
    quick: bool
    progress: Callable[[str], None]
    results: Path | None = None
    """Where results of dlqat-eval may lie besides the artifact."""
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

    @property
    def positions(self) -> int:
        """How long a text may be, for the reference and for the artifact."""
        own = self.reference.max_positions
        return min(own, self.artifact.manifest.context or own)

    @cached_property
    def plans(self) -> list[FeedPlan]:
        """The plans that fit into the model's context; the shortest one at least, which is one token."""
        return [p for p in self._wished if p.length <= self.positions] or [divergence.PLANS[0]]

    @property
    def dropped(self) -> list[FeedPlan]:
        """The plans that do not fit."""
        return [p for p in self._wished if p not in self.plans]

    @property
    def _wished(self) -> Sequence[FeedPlan]:
        if self.quick:
            return divergence.QUICK
        longest = divergence.long(self.positions)
        return (*divergence.PLANS, longest) if longest else divergence.PLANS

    def plans_of(self, text: Sequence[int]) -> list[FeedPlan]:
        """The plans that `text` is long enough for: the first text has room for all."""
        return [p for p in self.plans if p.length <= len(text)]

    @cached_property
    def texts(self) -> list[list[int]]:
        folder, vocabulary = self.reference.folder, self.reference.vocab_size
        longest = max(p.length for p in self.plans)
        found = prompts.texts(folder, vocabulary, longest)
        if self.quick:
            return found[:1]
        others = max(p.length for p in self.plans if p.length < divergence.SHORT)  # the longest plan is for one text
        return [found[0], *(ids[:others] for ids in found[1:])]

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

    def arithmetics(self, setting: Setting) -> dict[str, Arithmetic | None]:
        """Leaf path -> the arithmetic that rung L1 found under a setting (None: no stated one), or that of
        ELSEWHERE where the device runs no products."""
        try:
            return {part: x.arithmetic for x in self.linears(setting) for part in parts(x.name)}
        except NoProducts:
            known, held = ELSEWHERE.get(self.artifact.format), self.wanted.multiplications
            leaves = [(p, w.kind) for w in self.contents.weights for p in parts(w.name) if (p, w.kind) in held]
            return {p: known if self.wanted.leaf(p, kind).zero_points is None else None for p, kind in leaves}

    @cached_property
    def _linears(self) -> dict[Setting, list[linears.Linear]]:
        return {}


def judged(
    rung: str,
    name: str,
    wrong: Sequence[str],
    good: str,
    figures: dict[str, Any],
    doubts: Sequence[str] = (),
    table: Sequence[dict[str, Any]] = (),
) -> Check:
    """Failed if anything is wrong (the first, worst, is told), else not verified if anything is in doubt."""
    status: Status = "failed" if wrong else "not verified" if doubts else "passed"
    if not (reasons := wrong or doubts):
        return Check(rung, name, status, good, figures, table)
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return Check(rung, name, status, f"{reasons[0]}{more}", {**figures, "reasons": list(reasons[:100])}, table)
