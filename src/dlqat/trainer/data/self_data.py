# SPDX-License-Identifier: Apache-2.0
"""Training text without data: the float model writes it, as in LLM-QAT (arXiv 2305.17888, section 3.1).

An example begins with a random token of the vocabulary. The next 3 to 5 tokens are the most likely ones
(the hybrid that the paper found best: a sensible beginning), the rest is sampled from the whole
distribution, until the model ends its text or the example is full.

Texts are kept in chunks, cache/self-<key>/00000.jsonl, ..., one JSON list of token ids a line, each chunk
written at once. The key is a digest of everything that decides the text, and chunk i depends on (key, i)
alone: a killed run continues where it stopped, one with other rates or bits finds the texts (writing them
takes longer than training on them), and a longer one takes the chunks of a shorter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlqat import atomic, json_file, plain_file, source
from dlqat.source import Loaded
from dlqat.trainer.data import examples
from dlqat.trainer.data.examples import Examples

Progress = Callable[[int, int], None]
"""Hears how many tokens are done, and how many are wanted at most."""
ROWS = 32
"""Examples in a chunk: they are written in one batch."""
GREEDY = (3, 5)
VERSION = 1


def home() -> Path:
    """The cache of all runs of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlqat"


def silent(done: int, wanted: int) -> None:
    """Shows nothing."""


def load(loaded: Loaded, length: int, count: int, seed: int, cache: Path, progress: Progress = silent) -> Examples:
    """The first `count` examples of at most `length` tokens; those not in `cache` yet are written now."""
    starts = _starts(loaded.tokenizer, loaded.model.config.vocab_size)
    made_of = {
        "version": VERSION,
        "model": source.fingerprint(loaded.source),
        "dtype": str(loaded.model.dtype),
        "length": length,
        "rows": ROWS,
        "greedy": GREEDY,
        "seed": seed,
        "begin": examples.opening(loaded.tokenizer),
        "starts": hashlib.sha256(json.dumps(starts).encode()).hexdigest()[:16],
        "ends": sorted(_ends(loaded.model)),
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    folder = cache / f"self-{key[:16]}"
    rows: list[list[int]] = []
    for chunk in range(-(-count // ROWS)):
        path = folder / f"{chunk:05}.jsonl"
        if not path.exists():
            if chunk == 0:
                atomic.text(folder / "made_of.json", json.dumps(made_of, indent=1) + "\n")
            number = int.from_bytes(hashlib.sha256(f"{key} {chunk}".encode()).digest()[:7], "big")
            tick = partial(_tick, progress, chunk * ROWS * length, count * length)
            written = write(loaded.model, loaded.tokenizer, length, ROWS, number, tick)
            atomic.text(path, "".join(f"{json.dumps(row)}\n" for row in written))
        rows += _read(path)
        _tick(progress, 0, count * length, len(rows) * length)
    return examples.gather(((row, [True] * len(row)) for row in rows[:count]), length)


def _tick(progress: Progress, before: int, wanted: int, done: int) -> None:
    progress(min(before + done, wanted), wanted)


@torch.no_grad()
def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    rows: int,
    seed: int,
    tick: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """`rows` texts of at most `length` tokens (begin and end tokens included), a function of the arguments.
    `tick` hears after every step how many tokens there are."""
    random = torch.Generator(model.device).manual_seed(seed)

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (rows,), generator=random, device=model.device)

    starts = torch.tensor(_starts(tokenizer, model.config.vocab_size), device=model.device)
    greedy = draw(GREEDY[0], GREEDY[1] + 1)
    begin = torch.tensor(examples.opening(tokenizer), dtype=torch.int64, device=model.device).expand(rows, -1)
    ids = torch.cat([begin, starts[draw(0, len(starts))][:, None]], 1)
    ends = torch.tensor(_ends(model), device=model.device)
    alive = torch.ones(rows, dtype=torch.bool, device=model.device)
    lengths = torch.full((rows,), length, device=model.device)
    model.eval()
    step, past = ids, None
    for made in range(length - ids.shape[1]):
        out: Any = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
        past, logits = out.past_key_values, out.logits[:, -1].float()
        sampled = torch.multinomial(logits.softmax(-1), 1, generator=random)
        step = torch.where((made < greedy)[:, None], logits.argmax(-1, keepdim=True), sampled)
        ids = torch.cat([ids, step], 1)
        tick(ids.numel())
        ended = alive & torch.isin(step[:, 0], ends)
        lengths[ended] = ids.shape[1]
        alive &= ~ended
        if not bool(alive.any()):
            break
    return [row[:n] for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]


def _starts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """The tokens that a text may begin with: all but special and unused ones."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [i for i in range(min(len(tokenizer), vocab_size)) if i not in special]


def _ends(model: PreTrainedModel) -> list[int]:
    ends: Any = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _read(path: Path) -> list[list[int]]:
    again = "; delete it, and it is written again"
    lines = plain_file.text(path, again).splitlines()
    return [json_file.convert(json_file.parse(line, str(path), again), list[int], str(path), again) for line in lines]
