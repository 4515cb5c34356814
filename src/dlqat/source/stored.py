# SPDX-License-Identifier: Apache-2.0
"""A float model as it lies on disk, whatever the container: config, headers, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from dlqat import architecture, config_schema
from dlqat.refusal import Refusal
from dlqat.source import pretrained

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Stored:
    """`config` is complete (transformers' defaults filled in); `tensor` gives one parameter in `dtype`."""

    config: dict[str, Any]
    shapes: Mapping[str, Shape]
    dtype: torch.dtype
    tensor: Callable[[str], Tensor]
    files: tuple[Path, ...]
    """Every file that decides what the model computes."""
    notes: tuple[str, ...] = ()
    """What the user should know of how it was read, a line each."""


_ANSWERS = ("return_dict", "output_attentions", "output_hidden_states")
"""Settings of what a call gives back: not of the model, and dlqat asks for its own."""


def complete(raw: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A config.json with what it leaves to transformers' defaults written out, as save_pretrained writes it.
    Refusal for an unknown architecture."""
    if str(raw.get("model_type")) not in architecture.FAMILIES:
        architecture.read(raw)  # refuses
    config_schema.check_given(raw)
    raw = {key: value for key, value in raw.items() if key not in _ANSWERS}
    try:
        config = pretrained.config({**raw, "dtype": str(dtype).removeprefix("torch.")})
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError, StrictDataclassError) as error:
        raise Refusal(f"config.json is not a {raw['model_type']} config: {' '.join(str(error).split())}") from error
    config.architectures = [pretrained.model_class(config).__name__]
    plain = config.to_diff_dict()
    plain.pop("_name_or_path", None)
    architecture.read(plain)
    return plain


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def as_stored(found: Stored) -> Stored:
    """The model that the tensors make. A file with tied embeddings may hold the one matrix as the head alone. Where it holds
    both and they differ (LoRA on the head, merged), the model is not tied, whatever its config says: transformers 5 goes by
    the file as well; 4 drops the head."""
    if not found.config.get("tie_word_embeddings") or HEAD not in found.shapes:
        return found
    if EMBEDDING not in found.shapes:
        shapes = {EMBEDDING if name == HEAD else name: shape for name, shape in found.shapes.items()}
        return replace(found, shapes=shapes, tensor=lambda name: found.tensor(HEAD if name == EMBEDDING else name))
    if found.shapes[EMBEDDING] != found.shapes[HEAD] or torch.equal(found.tensor(EMBEDDING), found.tensor(HEAD)):
        return found
    note = "the model's head differs from its embedding, so it is its own, although config.json says that they are tied"
    return replace(found, config={**found.config, "tie_word_embeddings": False}, notes=(*found.notes, note))


def check(stored: Stored, where: str) -> None:
    """Refusal unless the tensors on disk are exactly those of transformers' class, in shape and name.

    transformers itself fills a missing tensor with random numbers and drops one it does not expect; a
    dropped bias is a forward that is nearly right."""
    if (layers := int(stored.config["num_hidden_layers"])) > len(stored.shapes):
        raise Refusal(f"{where}: the config says {layers} layers, and there are {len(stored.shapes)} tensors")
    try:
        with torch.device("meta"):
            config = pretrained.config(stored.config)
            model = pretrained.model_class(config)(config)
    except Exception as error:  # whatever a number that does not fit raises (a pad_token_id beyond the vocabulary)
        raise Refusal(f"{where}: config.json makes no model ({' '.join(str(error).split())[:200]})") from error
    needed = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    optional = {HEAD} if stored.config.get("tie_word_embeddings") else set[str]()
    for name, shape in needed.items():
        if name not in stored.shapes and name not in optional:
            raise Refusal(f"{where}: tensor {name} {list(shape)} is missing")
        if stored.shapes.get(name, shape) != shape:
            raise Refusal(
                f"{where}: tensor {name} has shape {list(stored.shapes[name])}, the config says {list(shape)}"
            )
    extra = sorted(n for n in stored.shapes if n not in needed and not n.endswith("rotary_emb.inv_freq"))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise Refusal(f"{where}: tensor {extra[0]}{more} has no place in a {stored.config['model_type']} model")
