# SPDX-License-Identifier: Apache-2.0
"""The target "coreml": a folder with model.mlpackage, the tokenizer, and what to check on a Mac."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlqat import architecture
from dlqat.exporters import generation, target, templates, tokens
from dlqat.exporters.coreml import golden as coreml_golden
from dlqat.exporters.coreml import package as coreml_package
from dlqat.exporters.coreml.storage import Storage
from dlqat.exporters.coreml.tools import temporary_in
from dlqat.exporters.manifest import Written
from dlqat.exporters.storage import LayerRow, rows
from dlqat.exporters.target import choice, parameters
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel

FORMS = ("stateful",)
NAME = "model.mlpackage"


@dataclass(frozen=True, slots=True)
class Options(target.Options):
    form: str = choice(*FORMS)
    deployment_target: str = choice(*coreml_package.TARGETS)
    """The lowest system that must run it."""


def plan(model: FoldedModel, source: Path, options: Options) -> list[LayerRow]:
    """`target.Target.plan`."""
    tokens.read(source, model.config)
    return rows(Storage(options.deployment_target), model)


def write(
    model: FoldedModel, source: Path, folder: Path, options: Options, done: Callable[[str], None] = lambda _: None
) -> Written:
    """`target.Target.write`."""
    facts = architecture.read(model.config)
    special = tokens.read(source, model.config)
    golden = coreml_golden.write(folder, source, facts, options.context)
    with temporary_in(folder):
        made = coreml_package.write(model, facts, options.context, options.deployment_target, done)
        coreml_package.save(made, folder / NAME, model.config, special, options.context)
    ready = f"not set up: {source} has no tokenizer.json"
    if special is not None:
        disk.copy_tokenizer(source, folder)
        (folder / "config.json").write_text(json.dumps(dict(model.config), indent=2) + "\n", encoding="utf-8")
        settings = tokens.load(folder / "generation_config.json")
        ready = f"not verified: needs Apple hardware{generation.state('swift-transformers', settings, templates.write(folder))[5:]}"
    return Written(
        target="coreml",
        form=options.form,
        program=NAME,
        parameters=parameters(facts),
        sizes=_sizes(folder / NAME),
        details={
            "deployment_target": options.deployment_target,
            "context": options.context,
            "golden": golden,
            "clients": {"swift-transformers": ready},
            "apple_hardware": "not verified; run check_on_mac.py",
        },
    )


def _sizes(package: Path) -> dict[str, int]:
    """Bytes of the weights, and of the program and its index."""
    files = [p for p in package.rglob("*") if p.is_file()]
    weights = sum(p.stat().st_size for p in files if p.suffix == ".bin")
    return {"weights": weights, "program": sum(p.stat().st_size for p in files) - weights}
