# SPDX-License-Identifier: Apache-2.0
"""One run of dlqat-check from end to end: an artifact and folded/ in, a Report out. Light until it runs: --help imports it."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlqat import atomic, folder_lock
from dlqat.artifact import Artifact
from dlqat.devices.all import device, why_not
from dlqat.devices.process.isolated import isolated
from dlqat.refusal import Refusal
from dlqat.runtime_tests.report import versions
from dlqat.runtime_tests.report.record import Check, Report

if TYPE_CHECKING:
    from dlqat.runtime_tests.check.proof import Proof

RUNGS = ("L0", "L1", "L2", "L3", "L4", "L5")
QUICK = ("L0", "L2", "L3")


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """One run of dlqat-check."""

    artifact: Artifact
    reference: Path
    device: str | None = None
    """None: the first one that runs artifacts of this format."""
    rungs: Sequence[str] = RUNGS
    quick: bool = False
    threads: int = 1
    output: Path | None = None
    """Where the report goes, and a result of dlqat-eval may lie; None: the artifact's folder."""

    @property
    def command(self) -> str:
        """What to type to get this report again."""
        words = ["dlqat-check", str(self.artifact.folder), "--reference", str(self.reference)]
        words += ["--device", self.device] if self.device else []
        words += ["--quick"] if self.quick else [w for r in self.rungs if self.rungs != RUNGS for w in ("--level", r)]
        return shlex.join([*words, "--threads", str(self.threads)])


@contextlib.contextmanager
def report_folder(request: CheckRequest) -> Generator[Path]:
    """Where the report goes, with the locks of a check held: nobody writes there, nobody replaces artifact or reference.
    Refusal, before any work, if it cannot be written to."""
    artifact = request.artifact.folder
    target = request.output or artifact
    if not atomic.writable(target):
        raise Refusal(f"{target} cannot be written to; say where the report goes with --output FOLDER")
    inside = artifact.resolve() == target.resolve()
    with (
        folder_lock.writing(target),
        folder_lock.reading(request.reference),
        contextlib.nullcontext() if inside else folder_lock.reading(artifact),
    ):
        yield target


def _checks(proof: Proof, rungs: Sequence[str], absent: str | None) -> Iterator[Check]:
    """The ladder's; where nothing that runs the artifact was fetched (`absent` says why), L0 alone."""
    from dlqat.runtime_tests.check import ladder

    if absent is None:
        yield from ladder.run(proof, rungs)
        return
    yield from ladder.run(proof, [r for r in rungs if r == "L0"])
    yield from (Check(r, proof.device.name, "not verified", absent) for r in rungs if r != "L0")


def prove(
    request: CheckRequest,
    tell: Callable[[str], None] = lambda what: None,
    done: Callable[[Check], None] = lambda check: None,
) -> Report:
    """Run the ladder. Refusal if the device cannot run here or the reference is no folded/ folder. Where nobody named a
    device, and the artifact's own is one that must be fetched first, L0 is run without it.

    `tell` hears what is looked at, `done` of every check."""
    chosen = device(request.device, request.artifact.format)
    reason = why_not(chosen, request.artifact)
    if reason is not None and not (request.device is None and getattr(chosen, "fetched", False)):
        raise Refusal(f"device {chosen.name} cannot run here: {reason}")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers and compressed-tensors draw bars of their own
    import torch

    from dlqat.runtime_tests.check import ladder, sizes
    from dlqat.runtime_tests.check.rungs import l4_accuracy
    from dlqat.runtime_tests.reference.model import Reference
    from dlqat.source import unpacked

    torch.set_num_threads(request.threads)
    start = time.monotonic()
    checks: list[Check] = []
    tell("reading the reference")
    reference = Reference(request.reference, unpacked.load)
    proof = ladder.Proof(
        request.artifact, reference, isolated(chosen), request.threads, request.quick, tell, request.output
    )
    _ = proof.texts  # a tokenizer that cannot be read is refused now, and not after some of the rungs
    for check in _checks(proof, request.rungs, reason):
        checks.append(check)
        done(check)
    return Report(
        artifact=str(request.artifact.folder),
        reference=str(request.reference),
        device=chosen.name,
        command=request.command,
        seconds=time.monotonic() - start,
        facts=proof.facts,
        versions={"python": platform.python_version()} | versions.installed(),
        checks=tuple(checks),
        sizes=sizes.by_component(proof),
        accuracy=l4_accuracy.result(proof),
    )
