# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that a model is trained with is the one that ships, whatever files it came in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import models
from dlqat import corpus, source
from dlqat.refusal import Refusal
from dlqat.source import sidecar
from toy_tokenizer import WORDS, byte_tokenizer, qwen_tokenizer, sentencepiece_tokenizer

KINDS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "qwen": qwen_tokenizer,
    "legacy": lambda: sentencepiece_tokenizer("legacy"),
    "first": lambda: sentencepiece_tokenizer("first"),
}
OTHER = {("bytes", "Qwen2Tokenizer"), ("legacy", "LlamaTokenizer")}
"""Where transformers' AutoTokenizer has other tokens than tokenizer.json."""


def folder(path: Path, tokenizer: Any, **settings: Any) -> Path:
    """A model's folder with a tokenizer whose tokenizer_config.json says `settings`."""
    tokenizer.save_pretrained(path)
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return path


def other(tokenizer: Any, path: Path) -> list[str]:
    """Kinds of texts for which it has other tokens than tokenizer.json."""
    raw = Tokenizer.from_file(str(path / "tokenizer.json"))
    texts = corpus.texts(["<s>", "</s>"])
    return [kind for kind, text in texts.items() if tokenizer(text)["input_ids"] != raw.encode(text).ids]


@pytest.mark.parametrize("name", ["TokenizersBackend", "Qwen2Tokenizer", "LlamaTokenizer", "NewTokenizer", None])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_tokenizer_json(tmp_path: Path, kind: str, name: str | None) -> None:
    path = folder(tmp_path, KINDS[kind](), tokenizer_class=name)
    assert other(sidecar.tokenizer(path), path) == []
    if (kind, name) in OTHER:  # if this ends, AutoTokenizer will do
        assert other(AutoTokenizer.from_pretrained(path), path) != []


def test_special_tokens_of_the_class(tmp_path: Path) -> None:
    """A tokenizer_config.json that leaves them to the family's class."""
    sentencepiece_tokenizer("legacy").save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    found = sidecar.tokenizer(tmp_path)
    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")


def vocabulary_and_merges(path: Path) -> Path:
    """GPT-2's two files instead of tokenizer.json."""
    folder(path, byte_tokenizer(), tokenizer_class="GPT2Tokenizer")
    content = json.loads((path / "tokenizer.json").read_text())["model"]
    (path / "vocab.json").write_text(json.dumps(content["vocab"]))
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in content["merges"])]))
    (path / "tokenizer.json").unlink()
    return path


def test_vocabulary_and_merges_become_a_tokenizer_json(tmp_path: Path) -> None:
    """What a run writes into its model_dir has the tokens that it trains on."""
    path = vocabulary_and_merges(tmp_path / "source")
    models.tiny(vocab_size=320).save_pretrained(path)
    loaded = source.load(source.resolve(str(path)))
    loaded.files(tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    assert other(loaded.tokenizer, tmp_path / "out") == []
    assert sidecar.tokenizer(tmp_path / "out")(WORDS)["input_ids"] == byte_tokenizer()(WORDS)["input_ids"]


def sentencepiece(path: Path, **options: Any) -> Path:
    """A model's folder with nothing but tokenizer.model."""
    trainer: Any = pytest.importorskip("sentencepiece").SentencePieceTrainer
    path.mkdir()
    text = path / "text"
    text.write_text("\n".join([WORDS, *(t.replace("\n", " ") for t in corpus.TEXTS.values())] * 3))
    usual = {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "character_coverage": 0.999,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "minloglevel": 3,
        "input": str(text),
    }
    trainer.train(model_prefix=str(path / "tokenizer"), **usual | options)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return path


def test_tokenizer_model_becomes_a_tokenizer_json(tmp_path: Path) -> None:
    """With the tokens of sentencepiece itself."""
    path = sentencepiece(tmp_path / "source")
    own = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    assert sidecar.tokenizer(path)(WORDS, add_special_tokens=False)["input_ids"] == own.encode(WORDS)


@pytest.mark.parametrize(
    "option", [{"add_dummy_prefix": False}, {"normalization_rule_name": "nmt_nfkc"}, {"remove_extra_whitespaces": True}]
)
def test_a_conversion_with_other_tokens_is_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    """transformers 5.23 does not carry these settings of tokenizer.model over."""
    with pytest.raises(
        Refusal, match="other tokens of tokenizer.model than sentencepiece for .*; add the tokenizer.json"
    ):
        sidecar.tokenizer(sentencepiece(tmp_path / "source", **option))
