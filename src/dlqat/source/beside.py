# SPDX-License-Identifier: Apache-2.0
"""What lies beside the weights, tokenizer and generation_config.json: read by transformers, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from dlqat import json_file
from dlqat.refusal import Refusal
from dlqat.source import pretrained

_ANY_OF = ("tokenizer.json", "tokenizer.model", "vocab.json")


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. Refusal if it is missing or cannot be read."""
    if not any((folder / name).is_file() for name in _ANY_OF):
        raise Refusal(f"{folder} has no tokenizer.json; copy the tokenizer's files there from the model it came from")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            json_file.read(folder / name)
    return _read(folder, pretrained.tokenizer)


def gguf_tokenizer(path: Path) -> Any:
    """The tokenizer inside a .gguf file. Refusal if it cannot be read."""
    return _read(path, pretrained.gguf_tokenizer)


def _read(where: Path, load: Callable[[Path], Any]) -> Any:
    try:
        found = load(where)
        found.decode(found("a word").input_ids)  # some settings are looked at when it is used
    except Refusal:
        raise
    except BaseException as error:  # unrelated classes; a panic in Rust is not even an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refusal(f"{where}: the tokenizer cannot be read: {reason}") from error
    return found


def generation(folder: Path) -> GenerationConfig | None:
    """generation_config.json, if there is one. Refusal if it cannot be read, or names an end that is no token id."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    ends = json_file.read(path).get("eos_token_id")
    if ends is not None and not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends])):
        raise Refusal(f"{path}: eos_token_id {ends!r} is no token id; generation would not end")
    try:
        return pretrained.generation_config(folder)
    except Refusal:
        raise
    except Exception as error:  # whatever a value of the wrong kind raises in transformers
        raise Refusal(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
