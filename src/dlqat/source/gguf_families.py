# SPDX-License-Identifier: Apache-2.0
"""What a .gguf file of each architecture means as a config.json, beyond what all of them have: its own keys of the metadata,
and what llama.cpp has in code (llamacpp.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dlqat.families import FAMILIES
from dlqat.llamacpp import (
    GEMMA2_DEFAULTS,
    GEMMA2_LARGE,
    GEMMA2_PERIOD,
    GEMMA_LARGE,
    GEMMA_LOCAL_BASE,
    GEMMA_PERIOD,
    SMOLLM3_PERIOD,
)
from dlqat.refusal import Refusal

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """How the files of one architecture are read. `keys`: of the metadata, besides those of all architectures; `needed` of them
    must be there. `more` gives further fields of the config, from the file's own keys and from what all architectures have."""

    model_type: str
    keys: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()
    more: Callable[[Fields, Fields], Fields] = lambda found, base: {}
    partial: bool = False
    """Whether some numbers of a head may turn only."""

    def config(self, found: Fields, base: Fields) -> dict[str, Any]:
        reads_bias = FAMILIES[self.model_type].mlp_bias
        plain = {key: value for key, value in base.items() if key != "mlp_bias" or reads_bias}
        return {**plain, "model_type": self.model_type, **self.more(found, base)}


def _smollm3(found: Fields, base: Fields) -> Fields:
    return {"no_rope_layers": [int((i + 1) % SMOLLM3_PERIOD != 0) for i in range(base["num_hidden_layers"])]}


def _granite(found: Fields, base: Fields) -> Fields:
    """A multiplier that is missing, or 0, is none: 1, and head_dim ** -0.5 of the queries."""
    return {
        "embedding_multiplier": found.get("embedding_scale") or 1.0,
        "residual_multiplier": found.get("residual_scale") or 1.0,
        "logits_scaling": found.get("logit_scale") or 1.0,
        "attention_multiplier": found.get("attention.scale") or base["head_dim"] ** -0.5,
    }


def _gemma2(found: Fields, base: Fields) -> Fields:
    layers, heads = base["num_hidden_layers"], base["num_attention_heads"]
    said = {key: found.get(key, default) for key, default in GEMMA2_DEFAULTS.items()}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention" if (i + 1) % GEMMA2_PERIOD else "full_attention" for i in range(layers)],
        "sliding_window": said[_WINDOW],
        "query_pre_attn_scalar": base["hidden_size"] // heads if layers == GEMMA2_LARGE else base["head_dim"],
        **{key: said[key] for key in ("attn_logit_softcapping", "final_logit_softcapping")},
    }


def _gemma3(found: Fields, base: Fields) -> Fields:
    layers, heads = base["num_hidden_layers"], base["num_attention_heads"]
    period = found.get("attention.sliding_window_pattern", GEMMA_PERIOD)
    if isinstance(period, list):
        raise Refusal("attention.sliding_window_pattern is a list; known: a number, every Nth layer")
    kinds = ["sliding_attention" if period and (i + 1) % period else "full_attention" for i in range(layers)]
    local = {"rope_type": "default", "rope_theta": float(found.get("rope.freq_base_swa", GEMMA_LOCAL_BASE))}
    ropes = {"full_attention": base["rope_parameters"], "sliding_attention": local}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": kinds,
        "sliding_window": found["attention.sliding_window"],
        "query_pre_attn_scalar": base["hidden_size"] // heads if layers == GEMMA_LARGE else base["head_dim"],
        "rope_parameters": ropes,
    }


def _phi3(found: Fields, base: Fields) -> Fields:
    """A window of 0 is none."""
    original = found.get("rope.scaling.original_context_length", base["max_position_embeddings"])
    return {"sliding_window": found.get(_WINDOW) or None, "original_max_position_embeddings": original}


_WINDOW = "attention.sliding_window"
READINGS: Mapping[str, Reading] = {
    "llama": Reading("llama"),
    "qwen2": Reading("qwen2"),
    "qwen3": Reading("qwen3"),
    "smollm3": Reading("smollm3", more=_smollm3),
    "granite": Reading(
        "granite",
        frozenset({"embedding_scale", "residual_scale", "logit_scale", "attention.scale"}),
        more=_granite,
    ),
    "gemma3": Reading(
        "gemma3_text",
        frozenset({_WINDOW, "attention.sliding_window_pattern", "rope.freq_base_swa"}),
        needed=frozenset({_WINDOW}),
        more=_gemma3,
    ),
    "olmo2": Reading("olmo2"),
    "gemma2": Reading("gemma2", frozenset(GEMMA2_DEFAULTS), more=_gemma2),
    "phi3": Reading("phi3", frozenset({_WINDOW, "rope.scaling.attn_factor"}), more=_phi3, partial=True),
}
"""By general.architecture (llama.cpp writes Mistral and others as llama)."""
