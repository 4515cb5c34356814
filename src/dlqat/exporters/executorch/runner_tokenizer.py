# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json as the C++ tokenizer of ExecuTorch's runners can use it (pytorch_tokenizers 1.5.0), with the same tokens.

    NFC                 taken as "strip the marks": "über" becomes "uber". Without it composed text, which is what
                        people type, has the model's tokens
    Metaspace           does not load. Its spaces and its first mark are written by normalizers instead; which of
                        three ways has the model's tokens is tried
    Strip (decoder)     the runner decodes token by token, so it eats the space before every word

The tokens of whatever is rewritten are compared with those of the file as it was, on chat prompts and on composed text;
what would change a chat prompt is not rewritten. asked.py then asks the C++ tokenizer itself.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dlqat import corpus, json_file
from dlqat.source import sidecar

Part = dict[str, Any]


def prepare(folder: Path) -> str | None:
    """Rewrite tokenizer.json in an artifact's `folder` where that is needed. Returns what was done, in words."""
    path = folder / "tokenizer.json"
    content = json_file.read(path)
    found = rewritten(content, corpus.prompts(sidecar.tokenizer(folder)))
    if found is None:
        return None
    path.write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    changed = " and ".join(key for key in ("normalizer", "pre_tokenizer", "decoder") if found[key] != content.get(key))
    return f"{changed} rewritten for the runner"


def rewritten(content: Part, prompts: Sequence[str]) -> Part | None:
    """tokenizer.json for the runner; None if it can stay as it is. `prompts`: chat prompts of the model."""
    fixed = {"pre_tokenizer": None, "normalizer": None, "decoder": None} | content
    fixed |= {
        "normalizer": _sequence([n for n in _parts(content, "normalizer") if n["type"] != "NFC"]),
        "decoder": _decoder(content),
    }
    ways = [fixed | way for way in _without_metaspace(fixed)] or [fixed]
    if all(way == content for way in ways):
        return None
    texts = [unicodedata.normalize("NFC", text) for text in corpus.TEXTS.values()]
    before = _tokens(content, [*prompts, *texts])
    found = [(_tokens(way, [*prompts, *texts]), way) for way in ways]
    same = [
        (sum(a == b for a, b in zip(ids, before, strict=True)), way)
        for ids, way in found
        if ids[: len(prompts)] == before[: len(prompts)]
    ]
    return max(same, key=lambda pair: pair[0])[1] if same else None


def _without_metaspace(content: Part) -> Iterator[Part]:
    """`content` with normalizers for its Metaspace: nothing first, a mark first, a mark first unless a space is there."""
    pre = _parts(content, "pre_tokenizer")
    if not any(p["type"] == "Metaspace" for p in pre):
        return
    mark = next(p.get("replacement", "▁") for p in pre if p["type"] == "Metaspace")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": mark}
    first = {"type": "Prepend", "prepend": mark}
    once = {"type": "Replace", "pattern": {"Regex": rf"\A{mark}{mark}"}, "content": mark}
    rest = _sequence([p for p in pre if p["type"] != "Metaspace"], "pretokenizers")
    for added in ([spaces], [first, spaces], [spaces, first, once]):
        yield {"normalizer": _sequence([*_parts(content, "normalizer"), *added]), "pre_tokenizer": rest}


def _decoder(content: Part) -> Part | None:
    parts = _parts(content, "decoder")
    if [p["type"] for p in parts] == ["Metaspace"]:
        spaces = {"type": "Replace", "pattern": {"String": parts[0].get("replacement", "▁")}, "content": " "}
        return _sequence([spaces, {"type": "ByteFallback"}, {"type": "Fuse"}], "decoders")
    kept = [p for p in parts if p["type"] != "Strip"]
    return content.get("decoder") if kept == parts else _sequence(kept, "decoders")


def _parts(content: Part, key: str) -> list[Part]:
    """The parts of a sequence, or the one part that there is."""
    found = content.get(key)
    if found is None:
        return []
    return next((found[k] for k in ("normalizers", "pretokenizers", "decoders") if k in found), [found])


def _sequence(parts: list[Part], key: str = "normalizers") -> Part | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return {"type": "Sequence", key: parts}


def _tokens(content: Part, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
