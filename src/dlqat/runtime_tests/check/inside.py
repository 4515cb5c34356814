# SPDX-License-Identifier: Apache-2.0
"""The tokenizer, template and ids that a program file carries, against folded/: written apart from the exporter.

tokens            tokenizer.json's text of every id, added tokens and unused rows included
merges            tokenizer.json's, in order; or scores, which must rank tokens as the merges that make them do
splitting         a name, behind which stand expressions in llama.cpp's source (src/llama-vocab.cpp): they must cut the
                  texts of corpus.py where tokenizer.json does
ids, begin, end   generation_config.json's; what tokenizer.json puts around a text
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import regex
from tokenizers import Tokenizer

from dlqat import corpus, json_file
from dlqat.runtime_tests.readers.contents import Inside
from dlqat.source.sidecar import tokenizer

_CONTROL, _USER, _UNUSED = 3, 4, 5
_ENDS = ("eos", "eot", "eom")
_CASES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+"
    r"((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITTINGS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "smollm": ((r"\p{N}", _GPT2), False),
    "llama-bpe": ((rf"{_CASES}\p{{N}}{{1,3}}{_TAIL}",), True),
    "dbrx": ((rf"{_CASES}\p{{N}}{{1,3}}{_TAIL}",), False),
    "qwen2": ((rf"{_CASES}\p{{N}}{_TAIL}",), False),
    "tekken": ((_TEKKEN,), True),
}
"""Name -> its expressions, one after the other, and whether a piece that is a token skips the merges."""


def differences(found: Inside, folded: Path, vocab_size: int, context: int | None) -> Iterator[str]:
    """Every way in which a text would become other tokens, or a chat another prompt, than folded/ says."""
    if context is not None and found.context != context:
        yield f"context_length is {found.context}, manifest.json says {context}"
    if not (folded / "tokenizer.json").is_file():
        if found.model != "none":
            yield "has a tokenizer, and folded/ has none"
        return
    content = json_file.read(folded / "tokenizer.json")
    yield from _vocabulary(found, content, vocab_size)
    inner = Tokenizer.from_file(str(folded / "tokenizer.json"))
    yield from _words(found, content["model"], inner)
    yield from _special(found, folded, inner)
    template: Any = tokenizer(folded).chat_template
    wanted = template.get("default") if isinstance(template, dict) else template
    if found.chat_template != wanted:
        yield "its chat template is not folded/'s"


def _vocabulary(found: Inside, content: dict[str, Any], size: int) -> Iterator[str]:
    added = {t["id"]: t for t in content.get("added_tokens", [])}
    texts = {i: t for t, i in content["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    if len(found.tokens) != size or len(found.types) != size:
        yield f"has {len(found.tokens)} tokens of {len(found.types)} types; the embedding has {size} rows"
        return
    wrong = [i for i in range(size) if (found.tokens[i] != texts[i] if i in texts else found.types[i] != _UNUSED)]
    if wrong:
        yield f"token {wrong[0]} is {found.tokens[wrong[0]]!r}, folded/ has {texts.get(wrong[0])!r} ({len(wrong)} differ)"
    kinds = {i: (_CONTROL if t.get("special") else _USER) for i, t in added.items()}
    other = [i for i in range(size) if found.types[i] in (_CONTROL, _USER) and i not in kinds]
    other += [i for i, kind in kinds.items() if found.types[i] != kind and found.ids.get("unknown") != i]
    if other:
        yield f"token {other[0]} ({found.tokens[other[0]]!r}) has type {found.types[other[0]]}"


def _words(found: Inside, model: dict[str, Any], inner: Tokenizer) -> Iterator[str]:
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    sentencepiece = bool(model.get("byte_fallback"))
    if found.model != ("llama" if sentencepiece else "gpt2"):
        yield f"tokenizer.ggml.model is {found.model!r}, which is not the kind of folded/'s"
    elif sentencepiece:
        made = list(dict.fromkeys("".join(m) for m in merges))
        score = dict(zip(found.tokens, found.scores, strict=False))
        if sorted(made, key=lambda t: -score.get(t, 0)) != made or len({score.get(t) for t in made}) != len(made):
            yield "scores do not rank tokens as the merges of tokenizer.json do"
        if found.spaced != inner.encode("x", add_special_tokens=False).tokens[0].startswith("▁"):
            yield f"add_space_prefix is {found.spaced}, which is not what tokenizer.json does"
    else:
        if [" ".join(m) for m in merges] != list(found.merges):
            yield "merges are not those of tokenizer.json"
        yield from _splitting(found, bool(model.get("ignore_merges")), inner)


def _splitting(found: Inside, whole_pieces: bool, inner: Tokenizer) -> Iterator[str]:
    expressions, whole = _SPLITTINGS.get(found.splitting or "", ((), False))
    if not expressions or whole != whole_pieces:
        yield f"tokenizer.ggml.pre is {found.splitting!r}, which does not merge as tokenizer.json does"
        return
    splitter: Any = inner.pre_tokenizer
    for kind, text in corpus.TEXTS.items():
        if _cut(text, expressions) != [place for _, place in splitter.pre_tokenize_str(text)]:
            yield f"tokenizer.ggml.pre is {found.splitting!r}, which splits {kind} in another way than tokenizer.json"
            return


def _cut(text: str, expressions: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where the pieces of a text are; what an expression does not match is a piece, too."""
    pieces = [(0, len(text))]
    for expression in expressions:
        pieces = [p for start, end in pieces for p in _apart(text, start, end, expression)]
    return pieces


def _apart(text: str, start: int, end: int, expression: str) -> Iterator[tuple[int, int]]:
    at = start
    for match in regex.finditer(expression, text[start:end]):
        first, last = start + match.start(), start + match.end()
        yield from [(at, first)] if first > at else []
        yield first, last
        at = last
    yield from [(at, end)] if end > at else []


def _special(found: Inside, folded: Path, inner: Tokenizer) -> Iterator[str]:
    settings = json_file.read(folded / "config.json") | json_file.read_if_there(folded / "generation_config.json")
    eos: Any = settings.get("eos_token_id")
    wanted = set(eos) if isinstance(eos, list) else {eos}
    ends = [found.ids[k] for k in _ENDS if k in found.ids]
    if set(ends) != wanted:
        yield f"ends at {ends}, folded/ at {sorted(wanted)}"
    if settings.get("bos_token_id") != found.ids.get("bos"):
        yield f"bos_token_id is {found.ids.get('bos')}, folded/ has {settings.get('bos_token_id')}"
    plain, whole = (inner.encode("x", add_special_tokens=add).ids for add in (False, True))
    own = [*([found.ids.get("bos")] if found.begins else []), *plain, *([found.ids.get("eos")] if found.ends else [])]
    if own != whole:
        yield f"puts {own} where tokenizer.json has {whole} (add_bos_token, add_eos_token)"
