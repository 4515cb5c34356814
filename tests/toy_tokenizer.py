# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers with a chat template: single characters, which fit the vocabulary (160) of tests/models.py, and bytes."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from models import tiny

CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def toy_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; <unk> 0, <s> 1, </s> 2."""
    tokens = ["<unk>", "<s>", "</s>", *string.printable[:95], "\n"]
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    return tokenizer


def write_base(folder: Path) -> Path:
    """A tiny model with this tokenizer as the Hugging Face folder `folder`/base, and text.txt beside it."""
    tokenizer = toy_tokenizer()
    tiny("llama-tied", vocab_size=max(160, len(tokenizer))).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    return folder / "base"


WORDS = "The river runs past the mill, and the miller's wheel turns.  if x:\n    return x + 1\n" * 3


def byte_tokenizer(chat_template: str | None = CHATML, size: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's, SmolLM2's and Llama 3's, with a little of English: what every client has a loader for."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([WORDS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    return tokenizer


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's pipeline: NFC, its splitting, bytes."""
    tokenizer = byte_tokenizer()
    inner: Any = tokenizer.backend_tokenizer
    splitting = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    inner.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(splitting), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)


def sentencepiece_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Llama's and Mistral's pipeline: spaces as a mark, bytes for unknown letters. `kind`: legacy, or Metaspace's scheme."""
    inner: Any = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(split=True)  # while it is trained: no token spans two words
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[*special, *fallback], show_progress=False)
    inner.train_from_iterator(WORDS.splitlines(), trainer)
    content = json.loads(inner.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in special]
    inner = Tokenizer.from_str(json.dumps(content))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if kind == "legacy":
        inner.pre_tokenizer = None
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        inner.decoder = decoders.Metaspace(prepend_scheme=kind)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = INST
    return tokenizer
