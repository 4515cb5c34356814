# SPDX-License-Identifier: Apache-2.0
"""Exported tiny models beside their folded/ folders: what the tests of the proof start from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import models
import unions
from dlqat import artifact as artifacts
from dlqat.devices.all import DEVICES, device
from dlqat.devices.device import Device
from dlqat.exporters import pipeline
from dlqat.exporters.executorch import target as executorch_target
from dlqat.exporters.onnx import target as onnx_target
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from dlqat.recipe import Recipe
from dlqat.runtime_tests.check import ladder
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.reference.model import Reference
from dlqat.runtime_tests.report.record import Check
from toy_tokenizer import toy_tokenizer

FORMS = ("qdq", "ort")
CONTEXT = 128


def export(
    folder: Path, form: str, family: str = "llama-tied", recipe: Recipe | None = None, **changes: object
) -> Path:
    """folder/folded and folder/FORM of a tiny model with a tokenizer; returns the artifact folder."""
    return export_model(folder, form, models.fold_model(models.tiny(family, **changes), recipe))


def export_union(folder: Path, form: str) -> Path:
    """The same with every kind of folded layer."""
    return export_model(folder, form, unions.fold_model("llama-biased"))


def export_model(folder: Path, form: str, model: FoldedModel, tokenizer: Any = None, context: int = CONTEXT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or toy_tokenizer()).save_pretrained(folder)
    disk.write(model, folder / "folded", files=folder)
    return export_folded(folder, form, context)


def export_folded(folder: Path, form: str, context: int = CONTEXT) -> Path:
    """folder/FORM from folder/folded."""
    if form in ("gguf", "q2_0", "mlx"):
        target: Any = pipeline.load("gguf" if form == "q2_0" else form)
        options = target.Options(context, "q2_0" if form == "q2_0" else target.FORMS[0])
    else:
        target = executorch_target if form in executorch_target.FORMS else onnx_target
        options = target.Options(context, form)
    pipeline.write(target, disk.read(folder / "folded"), folder / "folded", folder / form, options)
    return folder / form


def damaged(artifact: Path, copy: Path, file: str, change: Callable[[bytearray], None]) -> Path:
    """A copy of an artifact in which `change` was applied to the content of one file."""
    shutil.copytree(artifact, copy)
    content = bytearray((copy / file).read_bytes())
    change(content)
    (copy / file).write_bytes(content)
    return copy


def proof(artifact: Path, reference: Path, *, quick: bool = False) -> Proof:
    found = artifacts.find(artifact)
    return Proof(found, Reference(reference), device(None, found.format), 1, quick, lambda _: None)


def checks(artifact: Path, reference: Path, *rungs: str) -> list[Check]:
    """Run rungs of the ladder."""
    return list(ladder.run(proof(artifact, reference), rungs))


def runnable(name: str) -> Device:
    """The device of that name; the test is skipped with its reason where it cannot run."""
    if (reason := DEVICES[name].available()) is not None:
        pytest.skip(f"{name}: {reason}")
    return DEVICES[name]


def climb(name: str, artifact: Path, *rungs: str, quick: bool = True) -> list[Check]:
    """Run rungs on the device of that name, against the folded/ beside the artifact."""
    found, reference = artifacts.find(artifact), Reference(artifact.parent / "folded")
    return list(ladder.run(Proof(found, reference, runnable(name), 1, quick, lambda _: None), rungs))
