# SPDX-License-Identifier: Apache-2.0
"""Fixed texts of the proof, written for it: the same on every machine, every time.

TEXTS are long enough for a prefill of 128 tokens under any tokenizer; prose and code, since their
activations differ. A longer one goes on with the others, again and again. PROMPTS are short questions whose greedy answers are written and judged (rung L3);
some of them an instruct model answers in a few words, so that its end-of-text token is seen, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from dlqat.source import chat_template

TEXTS = (
    """The old lighthouse stood at the end of the harbour wall, and every evening the keeper walked out to it with a
lantern and a small bag of bread. He had done so for thirty years. In winter the waves came over the stones, and he had
to wait for the right moment, count to seven, and run. In summer children followed him and asked what he kept in the
tower, and he told them a different story every time: a whale's tooth, a map of an island that had sunk, a letter which
nobody had opened. None of it was true, and all of them knew, but they asked again the next day. When at last an
electric lamp was put on the wall, the keeper went on walking. The light did not need him any more, he said, but the
children did, and so did the gulls, who had grown used to the bread.""",
    """def binary_search(items, wanted):
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < len(items) and items[low] == wanted else -1

# The list must be sorted. Each step halves the part that is left, so a list of 1,000,000 items needs about 20 steps.
# What happens when the wanted item is not there? The loop ends with `low` at the place where it would have to be
# inserted, and the last line returns -1. A common mistake is to write `low = middle`, which never ends.

assert binary_search([1, 3, 5, 7, 9], 7) == 3
assert binary_search([1, 3, 5, 7, 9], 4) == -1
assert binary_search([], 4) == -1""",
)

PROMPTS = (
    "What is the capital of France? Answer with one word.",
    "Is 17 a prime number? Answer yes or no.",
    "Say hello.",
    "Translate into French: Good morning, my friend.",
    "Explain in two sentences why the sky is blue.",
    "Continue the series: 2, 4, 8, 16,",
    "Write a short poem about a cat that is afraid of snow.",
    "List five things to take along on a walk in the mountains.",
)


def texts(folder: Path, vocab_size: int, length: int) -> list[list[int]]:
    """TEXTS as token ids, `length` of each. Without a tokenizer in `folder`: fixed random ids."""
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        return [list(ids) for ids in _random(len(TEXTS), length, vocab_size)]
    ids = [list(tokenizer(text)["input_ids"]) for text in TEXTS]
    return [list(islice(cycle(chain(*ids[i:], *ids[:i])), length)) for i in range(len(ids))]


def prompts(folder: Path, vocab_size: int) -> list[list[int]]:
    """PROMPTS as token ids, through the chat template where there is one. Without a tokenizer: random ids."""
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        return [list(ids) for ids in _random(len(PROMPTS), 12, vocab_size)]
    if tokenizer.chat_template is None:
        return [list(tokenizer(text)["input_ids"]) for text in PROMPTS]
    turns = [[{"role": "user", "content": text}] for text in PROMPTS]
    return [chat_template.ids(tokenizer, turn, prompt=True) for turn in turns]


def has_tokenizer(folder: Path) -> bool:
    """Whether texts can be tokenized."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()


def _tokenizer(folder: Path) -> Any | None:
    if not has_tokenizer(folder):
        return None
    from dlqat import source

    return source.tokenizer(folder)


def _random(count: int, length: int, vocab_size: int) -> Sequence[Sequence[int]]:
    return np.random.default_rng(0).integers(0, vocab_size, (count, length)).tolist()
