# SPDX-License-Identifier: Apache-2.0
"""The target "gguf": one file that llama.cpp and the apps built on it load; weights only, the forward is llama.cpp's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlqat import architecture, tested
from dlqat.exporters import generation, target, templates, tokens
from dlqat.exporters.gguf import file, metadata, names, vocabulary
from dlqat.exporters.gguf.storage import COMPOUND, Storage
from dlqat.exporters.manifest import Written
from dlqat.exporters.storage import LayerRow, leaves, rows, weights
from dlqat.exporters.target import choice, parameters, sizes
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal

FORMS = ("exact", "q2_0")
NAME = "model.gguf"


@dataclass(frozen=True, slots=True)
class Options(target.Options):
    form: str = choice(*FORMS)


def plan(model: FoldedModel, source: Path, options: Options) -> list[LayerRow]:
    """`target.Target.plan`."""
    facts = architecture.read(model.config)
    metadata.refuse(facts, options.context)
    names.modules(model, facts)
    vocabulary.read(source, tokens.read(source, model.config), facts.vocab_size)
    templates.read(source)
    storage = _storage(options)
    if storage.narrow and all(storage.kind(w) != "Q2_0" for _, top in weights(model) for _, w in leaves("", top)):
        raise Refusal("--form q2_0 holds symmetric 2 bits in groups of 64, 128 or whole rows, and no layer is so")
    return rows(storage, model, COMPOUND)


def _storage(options: Options) -> Storage:
    return Storage(narrow=options.form == "q2_0")


def write(
    model: FoldedModel, source: Path, folder: Path, options: Options, done: Callable[[str], None] = lambda _: None
) -> Written:
    """`target.Target.write`."""
    facts = architecture.read(model.config)
    special = tokens.read(source, model.config)
    found = vocabulary.read(source, special, facts.vocab_size)
    chats = templates.read(source)
    by_tensor = file.write(
        folder / NAME, model, facts, options.context, _storage(options), found, chats.get(templates.DEFAULT), done
    )
    by_component = sizes(by_tensor)
    ready = f"not set up: {source} has no tokenizer.json"
    if special is not None:
        ready = generation.state("llama.cpp", tokens.load(source / "generation_config.json"))
    return Written(
        target="gguf",
        form=options.form,
        program=NAME,
        parameters=parameters(facts),
        sizes={**by_component, "metadata": (folder / NAME).stat().st_size - sum(by_component.values())},
        details={
            "context": metadata.context_length(facts, options.context),
            "head": "the embedding's bytes" if facts.tied else "its own",
            "clients": {"llama.cpp": ready},
            "tested": tested.ranges("llama.cpp"),
        },
    )
