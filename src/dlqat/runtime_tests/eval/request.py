# SPDX-License-Identifier: Apache-2.0
"""What one run of dlqat-eval was asked, and who answers it: the artifact on its device, and the reference in PyTorch.

The answers of each are kept in a journal under a digest of all that they depend on. The artifact's lie with its
results; the reference's beside folded/, so that every artifact of a model finds them answered.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlqat.artifact import Artifact
from dlqat.devices.device import Device, Session, Setting
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval.fingerprint import fingerprint, of_reference, of_session
from dlqat.runtime_tests.eval.journal import Journal
from dlqat.runtime_tests.eval.journaled_model import JournaledModel
from dlqat.runtime_tests.report import versions

if TYPE_CHECKING:  # with transformers, and --help imports this file
    from dlqat.source import Source

CACHE = ".dlqat-eval"
MESSAGES = ".jsonl"
"""The end of a --text that holds conversations."""
OF_REFERENCE = ("dlqat", "torch", "transformers", "compressed-tensors")
"""The packages that the reference's answers depend on."""


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """One run of dlqat-eval."""

    artifact: Artifact
    device: Device
    reference: Path | None
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    limit: int | None = None
    shots: int | None = None
    text: Path | None = None
    tokens: int | None = None
    activations: str | None = None
    threads: int = 1
    chat: bool | None = None
    """Whether questions go through the model's chat template; None: messages do, lm_eval's tasks do not."""
    base: Source | None = None
    """The float model; None: it is not measured."""
    prompts: Path | None = None
    """A user's own test set (prompts.py)."""
    longest: int | None = None
    """Tokens of an answer to it; None: prompts.LONGEST."""
    output: Path | None = None
    """Where results and journals go; None: results into the artifact, journals with what they are about."""

    @property
    def messages(self) -> bool:
        """Whether the text is conversations."""
        return self.text is not None and self.text.suffix == MESSAGES

    @property
    def folder(self) -> Path:
        return self.output or self.artifact.folder

    @property
    def command(self) -> str:
        """What to type to get these figures again."""
        words = ["dlqat-eval", str(self.artifact.folder), "--device", self.device.name]
        words += ["--reference", str(self.reference)] if self.reference else ["--no-reference"]
        words += ["--base", self.base.text] if self.base else ["--no-float"] if self.reference else []
        words += [w for t in self.tasks for w in ("--tasks", t)]
        for name in ("data", "limit", "shots", "prompts", "longest", "text", "tokens", "activations"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", str(value)]
        words += {True: ["--apply-chat-template"], False: ["--no-apply-chat-template"], None: []}[self.chat]
        return shlex.join([*words, "--threads", str(self.threads)])


def setting(request: EvalRequest) -> Setting:
    """The device's first setting with the activations that are asked for. Refusal if it has none."""
    found = request.device.settings(request.artifact.program, request.threads)
    fitting = [s for s in found if request.activations in (None, s.activations)]
    if not fitting:
        known = ", ".join(sorted({s.activations for s in found}))
        raise Refusal(f"device {request.device.name} has no --activations {request.activations} here; it has {known}")
    return fitting[0]


def artifact(request: EvalRequest, chosen: Setting) -> JournaledModel:
    """The artifact's own bytes on the device. It is opened now: only then is it known which phone or browser answers."""
    opened = request.device.open(request.artifact.program, chosen)
    facts = dict(opened.facts())
    identity = {
        "program": fingerprint(request.artifact),
        "device": request.device.name,
        "setting": [chosen.activations, chosen.optimize],
        "versions": versions.installed(),
        "facts": of_session(facts),
    }
    journal = Journal(request.folder / CACHE, identity)
    subject = JournaledModel(request.device.name, lambda: opened, journal, context(request), told=facts)
    _ = subject.session  # it closes with the JournaledModel, asked or not
    return subject


def context(request: EvalRequest) -> int:
    """Tokens that there is room for."""
    return request.artifact.manifest.context or 2048


def reference(request: EvalRequest, folder: Path) -> JournaledModel:
    """folded/ as transformers loads it, in float32."""

    def network() -> Any:
        from dlqat.runtime_tests.reference.model import Reference

        return Reference(folder).network

    return _pytorch(request, "reference", of_reference(folder), network, folder)


def floating(request: EvalRequest, origin: Source, folder: Path) -> JournaledModel:
    """The float model that `folder` was trained from, in float32."""
    from dlqat import source

    def network() -> Any:
        return source.load(origin).model.float()

    return _pytorch(request, "float", source.fingerprint(origin), network, folder)


def _pytorch(request: EvalRequest, name: str, digest: str, network: Callable[[], Any], folder: Path) -> JournaledModel:
    """A model in PyTorch, whose answers lie beside `folder`, so that every artifact of it finds them."""
    import torch

    from dlqat.runtime_tests.reference.torch_session import TorchSession

    used = {package: version for package, version in versions.installed().items() if package in OF_REFERENCE}

    def opened() -> Session:
        torch.set_num_threads(request.threads)
        return TorchSession(network())

    beside = folder.resolve().parent
    place = request.folder if request.output or not os.access(beside, os.W_OK) else beside
    return JournaledModel(name, opened, Journal(place / CACHE, {name: digest, "versions": used}), context(request))
