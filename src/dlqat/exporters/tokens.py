# SPDX-License-Identifier: Apache-2.0
"""The special token ids of a model, from generation_config.json, checked against its tokenizer.

A model that was shipped with another family's end token never stops (docs/onnx.md names cases of the field). So the
ids come from one place, and a tokenizer that contradicts them is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlqat import json_file
from dlqat.architecture import Config
from dlqat.refusal import Refusal


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids as a runtime's config wants them."""

    eos: tuple[int, ...]
    """Every id that ends the text; the tokenizer's own first."""
    pad: int
    bos: int | None


def read(folder: Path, config: Config) -> SpecialTokens | None:
    """The ids of a model folder; None if it has no tokenizer.json, so that nobody can turn ids into text."""
    if not (folder / "tokenizer.json").is_file():
        return None
    generation, settings = load(folder / "generation_config.json"), load(folder / "tokenizer_config.json")

    def declared(key: str) -> list[int]:
        value = generation.get(key, config.get(key))
        try:
            return [] if value is None else [int(v) for v in (value if isinstance(value, list) else [value])]
        except (TypeError, ValueError) as error:
            raise Refusal(f"{folder}: {key} is {value!r}, no token id; correct generation_config.json") from error

    eos, bos, pad = declared("eos_token_id"), declared("bos_token_id"), declared("pad_token_id")
    if not eos:
        raise Refusal(
            f"{folder}: neither generation_config.json nor config.json has an eos_token_id; generation would not end"
        )
    ids = _vocabulary(folder / "tokenizer.json")
    for key, values in (("eos", eos), ("bos", bos), ("pad", pad)):
        if unknown := [v for v in values if v not in ids.values()]:
            raise Refusal(
                f"{folder}: {key}_token_id {unknown[0]} is not a token of tokenizer.json; correct generation_config.json"
            )
    own = ids.get(text(settings.get("eos_token")) or "")
    if own is not None and own not in eos:
        raise Refusal(
            f"{folder}: the tokenizer ends a text with {text(settings['eos_token'])!r} (id {own}), generation_config.json "
            f"stops at {eos}; correct one of them"
        )
    ordered = sorted(eos, key=lambda v: v != own)
    return SpecialTokens(tuple(ordered), pad[0] if pad else ordered[0], bos[0] if bos else None)


def load(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} if there is none."""
    return json_file.read_if_there(path, "; take the file from the model it came with")


def text(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object that holds it."""
    found: Any = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _vocabulary(path: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except BaseException as error:  # it raises no class of its own, and a panic in Rust is not even an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refusal(f"{path} cannot be read ({reason}); take the file from the model it came with") from error
