# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json as llama.cpp's metadata, or a Refusal where llama.cpp would cut texts in another way.

    byte-level BPE      tokenizer.ggml.model gpt2: tokens and merges; how a text is split first is a name, `pre`, behind
                        which stand regular expressions in llama.cpp's source, so a splitting without a name is refused
    BPE of characters   tokenizer.ggml.model llama (sentencepiece): no merges but scores; any two neighbours merge whose
    with bytes          text is a token, best score first. That is the same where tokenizer.json merges every split of a
                        token, as all that were made from sentencepiece do

llama.cpp has no normalizers: composed and decomposed letters are other tokens to it (docs/gguf.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlqat import json_file
from dlqat.exporters.tokens import SpecialTokens
from dlqat.refusal import Refusal

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's enum llama_token_type."""

_GPT2 = "gpt2"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    (("digits", _GPT2), False): "smollm",
    ((rf"{_CONTRACTIONS}\p{{N}}{{1,3}}{_REST}",), True): "llama-bpe",
    ((rf"{_CONTRACTIONS}\p{{N}}{{1,3}}{_REST}",), False): "dbrx",
    ((rf"{_CONTRACTIONS}\p{{N}}{_REST}",), False): "qwen2",
    ((_TEKKEN,), True): "tekken",
}
"""(how a text is split, whether a whole piece that is a token skips the merges) -> tokenizer.ggml.pre."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What stands under tokenizer.ggml."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    settings: Mapping[str, bool | int | str] | None = None


def read(source: Path, special: SpecialTokens | None, size: int) -> Vocabulary:
    """Of a folder; `size`: rows of the embedding. Without a tokenizer.json it has no tokens."""
    if special is None:
        return Vocabulary("none", (), ())
    path = source / "tokenizer.json"
    content = json_file.read(path)
    model: dict[str, Any] = content["model"]
    if model.get("type") != "BPE":
        raise Refusal(f"{path}: llama.cpp has no {model.get('type')} tokenizer; target gguf knows BPE")
    if len(special.eos) > len(_ENDS):
        raise Refusal(f"{source}: {len(special.eos)} end tokens, and GGUF has names for {len(_ENDS)}")
    tokens, types = _tokens(content, size, path)
    ids = dict(zip(_ENDS, special.eos, strict=False)) | {"padding_token_id": special.pad}
    if special.bos is not None:
        ids["bos_token_id"] = special.bos
    if (unknown := model["vocab"].get(model.get("unk_token"))) is not None:
        ids["unknown_token_id"] = unknown
        if model.get("byte_fallback"):
            types[unknown] = UNKNOWN
    settings: dict[str, bool | int | str] = {**ids, **_added(path)}
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        scores = _scores(tokens, merges, path)
        return Vocabulary(
            "llama",
            tokens,
            types,
            scores=scores,
            settings={**settings, "pre": "default", "add_space_prefix": _prefixed(content, path)},
        )
    settings["pre"] = _pre(content, path)
    return Vocabulary("gpt2", tokens, types, merges=[" ".join(m) for m in merges], settings=settings)


_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Of the text, of a turn, of a message: llama.cpp stops at each."""


def _tokens(content: Mapping[str, Any], size: int, path: Path) -> tuple[list[str], list[int]]:
    """Every id's text and type; rows of the embedding without a token are unused."""
    vocabulary = {int(i): str(t) for t, i in content["model"]["vocab"].items()}
    added = {int(t["id"]): t for t in content.get("added_tokens", ())}
    vocabulary |= {i: str(t["content"]) for i, t in added.items()}
    if (last := max(vocabulary)) >= size:
        raise Refusal(f"{path} has a token {last}, and the embedding {size} rows; they belong to different models")
    bytewise = bool(content["model"].get("byte_fallback"))
    tokens = [vocabulary.get(i, f"[PAD{i}]") for i in range(size)]
    if len(set(tokens)) < size:
        raise Refusal(f"{path} has two ids for one token, and GGUF one id for each")

    def kind(i: int) -> int:
        if i in added:
            return CONTROL if added[i].get("special") else USER_DEFINED
        if i not in vocabulary:
            return UNUSED
        return BYTE if bytewise and re.fullmatch(r"<0x[0-9A-F]{2}>", tokens[i]) else NORMAL

    return tokens, [kind(i) for i in range(size)]


def _added(path: Path) -> dict[str, bool]:
    """Whether the tokenizer puts a begin and an end token around a text. Refusal for anything else around it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    inner, whole = (tokenizer.encode("x", add_special_tokens=add).ids for add in (False, True))
    before = len(whole) - len(inner)
    if whole == inner or (before == 1 and whole[1:] == inner):
        return {"add_bos_token": bool(before), "add_eos_token": False}
    raise Refusal(f"{path} puts tokens around a text which llama.cpp does not: {whole} where {inner} is the text")


def _pre(content: Mapping[str, Any], path: Path) -> str:
    if (normalizer := content.get("normalizer")) is not None and normalizer.get("type") not in ("NFC", "NFKC"):
        raise Refusal(f"{path}: llama.cpp has no normalizer {normalizer.get('type')}")
    found = content.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", ()) if found.get("type") == "Sequence" else (found,)
    key = tuple(x for step in steps for x in _splits(step)), bool(content["model"].get("ignore_merges"))
    if key not in PRE:
        known = ", ".join(PRE.values())
        raise Refusal(f"{path} splits texts in a way that llama.cpp has no name for; target gguf knows {known}")
    return PRE[key]


def _splits(step: Mapping[str, Any]) -> list[str]:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(regex)}:
            return [_GPT2] if regex else []
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [_GPT2]
        case {"type": "Digits", "individual_digits": True}:
            return ["digits"]
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if not step.get("invert"):
            return [regex]
        case _:
            return [f"unknown {step.get('type')}"]


def _prefixed(content: Mapping[str, Any], path: Path) -> bool:
    """Whether a space is put before a text, in either of the two ways in which tokenizer.json says sentencepiece."""
    normalizer, splitter = content.get("normalizer"), content.get("pre_tokenizer")
    match normalizer, splitter:
        case None, {"type": "Metaspace", "prepend_scheme": str(scheme)} if not splitter.get("split", True):
            return scheme != "never"
        case {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace"}]}, None:
            return True
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, None | {
            "type": "Split",
            "pattern": {"String": " "},
        }:
            return False  # no space is left for Gemma's Split
        case _:
            raise Refusal(f"{path} prepares texts in a way that llama.cpp's sentencepiece does not")


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, ...]], path: Path) -> list[float]:
    """Minus the place of a token among the merges that make one; 0 for what no merge makes."""
    rank: dict[str, int] = {}
    made: dict[str, set[tuple[str, ...]]] = {}
    for pair in merges:
        rank.setdefault("".join(pair), len(rank))
        made.setdefault("".join(pair), set()).add(pair)
    order = [rank["".join(pair)] for pair in merges]
    known = set(tokens)
    for token, pairs in made.items():
        for i in range(1, len(token)):
            if token[:i] in known and token[i:] in known and (token[:i], token[i:]) not in pairs:
                raise Refusal(
                    f"{path} does not merge {token[:i]!r} and {token[i:]!r}, which llama.cpp would, for {token!r} is a token"
                )
    if order != sorted(order):
        raise Refusal(
            f"{path} makes a token with another one's merges between its own; llama.cpp has one score for each"
        )
    return [-float(rank.get(token, 0)) for token in tokens]
