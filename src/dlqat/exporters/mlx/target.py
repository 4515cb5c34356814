# SPDX-License-Identifier: Apache-2.0
"""The target "mlx": a folder that mlx-lm and mlx-swift load; weights only, the forward is theirs.

A form is the float type of scales, gains and biases, and with them of the arithmetic: float32 holds everything; float16 and
bfloat16 halve the scales and are refused where a number would be rounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dlqat import architecture, tested
from dlqat.exporters import generation, target, templates, tokens
from dlqat.exporters.manifest import Written
from dlqat.exporters.mlx import config, file, storage
from dlqat.exporters.storage import LayerRow, rows
from dlqat.exporters.target import choice, parameters, sizes
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMS = tuple(TYPES)
NAME = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Options(target.Options):
    form: str = choice(*FORMS)


def plan(model: FoldedModel, source: Path, options: Options) -> list[LayerRow]:
    """`target.Target.plan`."""
    config.refuse(architecture.read(model.config), model)
    tokens.read(source, model.config)
    dtype = TYPES[options.form]
    for name in model.tensors:
        if (reason := storage.rounded(model.tensors[name], dtype)) is not None:
            raise Refusal(f"{name}: {reason}")
    return rows(storage.Storage(dtype), model, storage.COMPOUND)


def write(
    model: FoldedModel, source: Path, folder: Path, options: Options, done: Callable[[str], None] = lambda _: None
) -> Written:
    """`target.Target.write`."""
    facts = architecture.read(model.config)
    special = tokens.read(source, model.config)
    found = sizes(file.write(folder / NAME, model, TYPES[options.form], done))
    content = {**model.config, **config.keys(facts), "quantization": file.quantization(model, facts)}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    ready = f"not set up: {source} has no tokenizer.json"
    if special is not None:
        disk.copy_tokenizer(source, folder)
        settings = tokens.load(folder / "generation_config.json")
        ready = (
            f"not verified: its loader was not asked{generation.state('mlx-lm', settings, templates.write(folder))[5:]}"
        )
    return Written(
        target="mlx",
        form=options.form,
        program=NAME,
        parameters=parameters(facts),
        sizes={**found, "header": (folder / NAME).stat().st_size - sum(found.values())},
        details={
            "context": options.context,
            "head": "the embedding's bytes" if facts.tied else "its own",
            "clients": {"mlx-lm": ready},
            "tested": tested.ranges("mlx-lm"),
        },
    )
