# SPDX-License-Identifier: Apache-2.0
"""The language part of a model that sees or hears as well: its own config (`text_config`) and its tensors, under the names
that they have in a model of text. Towers and projectors are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dlqat.families import FAMILIES
from dlqat.refusal import Refusal

_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "lm_head.": "lm_head.",
}
"""Of the tensors that it has, in files of transformers 4 and 5."""
_SHARED = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
"""What stands beside text_config as well."""


def config(raw: Mapping[str, Any], where: str, *, text_only: bool) -> dict[str, Any]:
    """The config.json of the text that a model reads and writes. Refusal if it has more parts and only one was not asked for."""
    kind, inner = raw.get("model_type"), raw.get("text_config")
    if not isinstance(inner, dict) or kind in FAMILIES:
        if text_only:
            raise Refusal(f"{where} has no text_config: it is a model of text already; leave --text-only out")
        return dict(raw)
    text = inner.get("model_type")
    if text not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise Refusal(f"{where} is a {kind} model, and its language part a {text}, which is not known; known: {known}")
    if not text_only:
        raise Refusal(
            f"{where} is a {kind} model, which does not only read text; its language part, a {text}, can be taken alone: "
            "--text-only"
        )
    return {**inner, **{key: raw[key] for key in _SHARED if raw.get(key) is not None}}


def names(stored: Iterable[str]) -> dict[str, str]:
    """Name in a model of text -> name in the file."""
    return {
        own + n.removeprefix(prefix): n for n in stored for prefix, own in _PREFIXES.items() if n.startswith(prefix)
    }


def left_out(stored: Iterable[str], taken: Mapping[str, str]) -> str:
    """One line for people."""
    others = {name.removeprefix("model.").partition(".")[0] for name in set(stored) - set(taken.values())}
    return f"the language part alone is taken; left out: {', '.join(sorted(others)) or 'nothing'}"
