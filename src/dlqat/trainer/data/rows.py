# SPDX-License-Identifier: Apache-2.0
"""Rows of training data, wherever they lie: JSONL files, or a dataset of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlqat import json_file, plain_file
from dlqat.refusal import Refusal
from dlqat.trainer.data import chat
from dlqat.trainer.data.examples import Marked

Row = tuple[str, Any]
"""Where it stands (data.jsonl:17), and what stands there."""

ACCEPTED = '{"text"}, {"prompt", "completion"} or {"messages"}'
DATASET = r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[^:\[\]/\\]*))?(?::(?P<split>[^/\\]+))?"


def jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file; empty lines are passed over."""
    if (reason := plain_file.fault(path)) is not None:
        raise Refusal(f"{path} {reason}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", json_file.parse(line, f"{path}:{number}")


def dataset(text: str, seed: int) -> Iterator[Row]:
    """The rows of a hub dataset, org/name[:config][:split] (split: train), streamed, so that a large one is
    not downloaded whole, and shuffled in a window of 10,000 rows, because many are sorted."""
    match = re.fullmatch(DATASET, text)
    assert match is not None
    try:
        import datasets
    except ImportError as error:
        raise Refusal(f"{text} is a hub dataset; to read it: pip install datasets") from error
    try:
        split = match["split"] or "train"
        stream = datasets.load_dataset(match["name"], match["config"] or None, split=split, streaming=True)
        for number, row in enumerate(stream.shuffle(seed=seed, buffer_size=10_000)):
            yield f"{text} (row {number})", row
    except Refusal:
        raise
    except Exception as error:  # datasets, the hub and httpx raise unrelated classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refusal(f"{text} is no path here and cannot be had from the hub: {reason}") from error


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
    if not isinstance(value, Mapping):
        raise Refusal(f"{where}: a row is an object {ACCEPTED}, found {str(value)[:60]}")
    if value.get("messages") is not None:
        return chat.mark(value["messages"], tokenizer, where, value.get("tools"))
    if value.get("completion") is not None:
        prompt, completion = _text(value, "prompt", where), _text(value, "completion", where)
        return [Marked(prompt + completion, ((len(prompt), len(prompt + completion)),))]
    if value.get("text") is not None:
        text = _text(value, "text", where)
        return [Marked(text, ((0, len(text)),))]
    raise Refusal(f"{where}: a row is {ACCEPTED}, found the keys {', '.join(map(str, value)) or '(none)'}")


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise Refusal(f'{where}: "{key}" must be a text, found {str(value)[:60]}')
    return value
