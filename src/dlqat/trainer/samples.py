# SPDX-License-Identifier: Apache-2.0
"""What the model answers to held-out prompts: the float model, the start, and the result. Numbers say whether training
helped, answers what it did. Greedy, COUNT prompts in one batch, LENGTH tokens at most."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dlqat import atomic, json_file
from dlqat.terminal import Terminal
from dlqat.trainer import precision
from dlqat.trainer.data.examples import Examples
from dlqat.trainer.layers.qat import made_once, teacher

FILE = "samples.json"
COUNT, LENGTH, SHOWN = 3, 40, 200
"""SHOWN: characters of an answer on the screen, and of a prompt's end."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt, what the data answer, and what the models do."""

    prompt: str
    data: str
    float_model: str
    start: str
    trained: str = ""


def prompts(held: Examples) -> list[tuple[Tensor, Tensor]]:
    """(prompt, answer) as token ids of the first examples: an answer begins where loss does."""
    found: list[tuple[Tensor, Tensor]] = []
    for index in range(min(COUNT, len(held))):
        ids, loss = held.example(index)
        learned = loss.nonzero()
        begin = int(learned[0])
        end = int((~loss[begin:]).nonzero()[0]) + begin if not bool(loss[begin:].all()) else len(ids)
        found.append((ids[:begin], ids[begin:end]))
    return found


def before(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held: Examples) -> list[Sample]:
    """The float model and the start, of a prepared model."""
    asked = prompts(held)
    with teacher(model):
        floats = _answers(model, tokenizer, [prompt for prompt, _ in asked])
    starts = _answers(model, tokenizer, [prompt for prompt, _ in asked])
    return [
        Sample(_text(tokenizer, prompt, whole=True), _text(tokenizer, answer), one, other)
        for (prompt, answer), one, other in zip(asked, floats, starts, strict=True)
    ]


def after(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held: Examples, samples: list[Sample]
) -> list[Sample]:
    """The same prompts once more."""
    answers = _answers(model, tokenizer, [prompt for prompt, _ in prompts(held)])
    return [replace(sample, trained=answer) for sample, answer in zip(samples, answers, strict=True)]


@torch.no_grad()
def _answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Tensor]) -> list[str]:
    model.eval()  # a block that recomputes has no cache, and is in training mode for that
    longest = max(map(len, asked))
    ids = torch.zeros(len(asked), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(asked):  # padded on the left, as generation needs it
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    room = model.config.max_position_embeddings - longest
    ends: Any = tokenizer.eos_token_id
    plain = GenerationConfig(
        do_sample=False, max_new_tokens=max(1, min(LENGTH, room)), eos_token_id=ends, pad_token_id=ends or 0
    )
    generate: Any = model.generate
    with precision.autocast(model.device.type), made_once(model):
        made = generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=plain)
    return [_text(tokenizer, row[longest:]) for row in made]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Tensor, *, whole: bool = False) -> str:
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=not whole)).strip()


@dataclass(frozen=True, slots=True)
class _File:
    samples: list[Sample]


def write(samples: list[Sample], path: Path) -> None:
    """As JSON, atomically."""
    atomic.text(path, json.dumps(asdict(_File(samples)), indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> list[Sample]:
    """What `write` wrote. Refusal if it is something else."""
    return json_file.convert(json_file.read(path), _File, str(path)).samples


def show(samples: list[Sample], console: Terminal) -> None:
    """For people."""
    console.print("Answers to prompts that were not trained on (samples.json):")
    for sample in samples:
        console.print(f"  prompt       ...{_line(sample.prompt[-SHOWN:])}", soft_wrap=True)
        told = {
            "in the data": sample.data,
            "float model": sample.float_model,
            "the start": sample.start,
            "trained": sample.trained,
        }
        for name, text in told.items():
            console.print(f"    {name:<13}{_line(text[:SHOWN])}", soft_wrap=True)


def _line(text: str) -> str:
    return " ".join(text.split())
