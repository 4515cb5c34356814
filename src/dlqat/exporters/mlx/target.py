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
from dlqat.architecture import Decoder
from dlqat.exporters import generation, target, templates, tokens
from dlqat.exporters.manifest import Written
from dlqat.exporters.mlx import file, storage
from dlqat.exporters.storage import LayerRow, rows
from dlqat.exporters.target import choice, parameters, sizes
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMS = tuple(TYPES)
NAME = "model.safetensors"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Options(target.Options):
    form: str = choice(*FORMS)


def plan(model: FoldedModel, source: Path, options: Options) -> list[LayerRow]:
    """`target.Target.plan`."""
    _refuse(architecture.read(model.config), model)
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
    config = {**model.config, "quantization": file.quantization(model, facts)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
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


def _refuse(facts: Decoder, model: FoldedModel) -> None:
    """Refusal for what mlx-lm's model of that name would leave out or add."""
    if facts.family not in FAMILIES:
        raise Refusal(f"target mlx does not know {facts.family} yet; known: {', '.join(FAMILIES)}")
    if any(w is not None and w < facts.max_positions for w in facts.windows):
        raise Refusal(f"attention windows: mlx-lm's {facts.family} sees the whole text")
    if facts.family == "qwen2" and facts.head_dim * facts.heads != facts.hidden_size:
        raise Refusal(f"heads of {facts.head_dim}: mlx-lm's qwen2 takes hidden_size / heads")
    if facts.family == "qwen3" and facts.qkv_bias:
        raise Refusal("attention_bias: mlx-lm's qwen3 has no biases")
    if "lm_head.bias" in model.tensors:
        raise Refusal("lm_head.bias: mlx-lm's heads have no bias")
