# SPDX-License-Identifier: Apache-2.0
"""Rows of training data: those of a dataset of the Hugging Face hub, and what every row teaches."""

from __future__ import annotations

import re
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from dlqat.refusal import Refusal
from dlqat.trainer.data import chat, forms
from dlqat.trainer.data.examples import Marked
from dlqat.trainer.data.files import Row
from dlqat.trainer.data.forms import Conversation

DATASET = r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[^:\[\]/\\]*))?(?::(?P<split>[^/\\]+))?"


def dataset(text: str, seed: int) -> Iterator[Row]:
    """The rows of a hub dataset, org/name[:config][:split] (split: train), streamed, so that a large one is
    not downloaded whole, and shuffled in a window of 10,000 rows, because many are sorted."""
    match = re.fullmatch(DATASET, text)
    assert match is not None
    try:
        import datasets
    except ImportError as error:
        raise Refusal(f"{text} is a hub dataset; to read it: pip install 'dlqat[data]'") from error
    try:
        split = match["split"] or "train"
        stream = datasets.load_dataset(match["name"], match["config"] or None, split=split, streaming=True)
        for number, row in enumerate(stream.shuffle(seed=seed, buffer_size=10_000)):
            yield f"{text} (row {number})", row
    except Refusal:
        raise
    except Exception as error:  # datasets, the hub and httpx raise unrelated classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refusal(f"{text} is not a path here and cannot be had from the hub: {reason}") from error


def mark(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[Marked]:
    """What a row teaches: all of a text, the completion of a prompt, the answers of a conversation."""
    found = _mark(row, tokenizer)
    for marked in found:
        try:
            marked.text.encode()
        except UnicodeEncodeError as error:  # JSON may hold such a half, and no tokenizer takes it
            half = f"\\u{ord(marked.text[error.start]):04x}"
            raise Refusal(f"{row[0]}: the text holds {half}, half of a character; mend it or leave it out") from error
    return found


def _mark(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[Marked]:
    where, value = row
    found = forms.read(value, where)
    return chat.mark(found.messages, tokenizer, where, found.tools) if isinstance(found, Conversation) else [found]
