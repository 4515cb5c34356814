# SPDX-License-Identifier: Apache-2.0
"""What lies beside the weights, tokenizer and generation_config.json: read by transformers, or refused in one line.

tokenizer.json ships as it is and apps read it, so it is what a model is trained on. transformers 5's AutoTokenizer does
not: for many families it keeps the vocabulary and builds normalizer and splitting anew by the class, so that a Qwen2 model
with another tokenizer (a distilled DeepSeek), or Llama 2's, gets other tokens than its own file says.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import pre_tokenizers
from transformers import GenerationConfig

from dlqat import corpus, json_file
from dlqat.refusal import Refusal
from dlqat.source import gguf_file, pretrained

_ANY_OF = ("tokenizer.json", "tokenizer.model", "vocab.json")


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. Refusal if it is missing or cannot be read."""
    if not any((folder / name).is_file() for name in _ANY_OF):
        raise Refusal(f"{folder} has no tokenizer.json; copy the tokenizer's files there from the model it came from")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            json_file.read(folder / name)
    if not (folder / "tokenizer.json").is_file():
        return _converted(_read(folder, pretrained.family_tokenizer), folder)
    found = _read(folder, pretrained.tokenizer)
    if found.eos_token is None:
        _fill(found, folder)
    return found


def _fill(found: Any, folder: Path) -> None:
    """Special tokens that tokenizer_config.json leaves to the class of the model's family."""
    try:
        usual = _read(folder, pretrained.family_tokenizer)
    except Refusal:  # a class that transformers does not have
        return
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = getattr(usual, name)
        if getattr(found, name) is None and token is not None and str(token) in found.get_vocab():
            setattr(found, name, token)


def _converted(usual: Any, where: Path) -> Any:
    """The tokenizer that tokenizer.json will hold, for a model that comes without one. Refusal if it has other tokens."""
    advice = "add the tokenizer.json that the model's authors ship"
    if (wrong := _unlike_sentencepiece(usual, where / "tokenizer.model")) is not None:
        raise Refusal(
            f"{where}: transformers makes other tokens of tokenizer.model than sentencepiece for {wrong}; {advice}"
        )
    with TemporaryDirectory() as draft:
        usual.save_pretrained(draft)
        found = _read(Path(draft), pretrained.tokenizer)
    found.name_or_path = str(where)
    special = [str(token) for token in usual.all_special_tokens]
    for kind, text in {"nothing": "", **corpus.texts(special)}.items():
        for add in (True, False):
            if usual(text, add_special_tokens=add)["input_ids"] != found(text, add_special_tokens=add)["input_ids"]:
                raise Refusal(f"{where}: its tokenizer has other tokens as a tokenizer.json for {kind}; {advice}")
    return found


def _unlike_sentencepiece(tokenizer: Any, model: Path) -> str | None:
    """A kind of text for which tokenizer.model itself has other tokens; None if there is none, or it cannot be asked."""
    try:
        sentencepiece: Any = importlib.import_module("sentencepiece")
        own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (ImportError, RuntimeError, OSError):  # not installed; a tiktoken file of that name
        return None
    texts = {kind: text for kind, text in corpus.TEXTS.items() if text == text.strip()}
    return next(
        (k for k, t in texts.items() if own.encode(t) != tokenizer(t, add_special_tokens=False)["input_ids"]), None
    )


def gguf_tokenizer(path: Path) -> Any:
    """The tokenizer inside a .gguf file. Refusal if it cannot be read."""
    metadata = gguf_file.read(path).metadata
    known = metadata.get("general.architecture") not in _NO_GGUF
    found = _read(path, lambda file: pretrained.gguf_tokenizer(file, known))
    if metadata.get("tokenizer.ggml.pre") in DIGITS:
        pieces: Any = pre_tokenizers
        found.backend_tokenizer.pre_tokenizer = pieces.Sequence(
            [pieces.Digits(individual_digits=True), pieces.ByteLevel(add_prefix_space=False)]
        )
    return _converted(found, path)


_NO_GGUF = ("smollm3", "granite", "olmo2")
"""Of which transformers refuses .gguf files; the tokenizers in them are byte-level ones that any file may have."""
DIGITS = ("smollm", "refact")
"""Splittings of llama.cpp that transformers takes for GPT-2's: each digit is a piece."""


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
    """generation_config.json, if there is one. Refusal if it cannot be read, or names an end that is not a token id."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    ends = json_file.read(path).get("eos_token_id")
    if ends is not None and not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends])):
        raise Refusal(f"{path}: eos_token_id {ends!r} is not a token id; generation would not end")
    try:
        return pretrained.generation_config(folder)
    except Refusal:
        raise
    except Exception as error:  # whatever a value of the wrong kind raises in transformers
        raise Refusal(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
