# SPDX-License-Identifier: Apache-2.0
"""The families of models that are known: what each fixes in code rather than in its config, one row each.

A row says in which way transformers' class of that model_type differs from modeling_llama. What cannot be said in a row's
fields, a function `read` takes out of the config: it returns further fields of `architecture.Decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dlqat.refusal import Refusal

Config = Mapping[str, Any]
"""The content of a Hugging Face config.json."""


@dataclass(frozen=True, slots=True)
class Norms:
    """Names of a block's norms of the hidden state, by where they stand; None: there is none."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


PRE = Norms()
POST = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
SANDWICH = Norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)


@dataclass(frozen=True, slots=True)
class Family:
    """What a model_type fixes in code rather than in its config. None: the config says it."""

    qkv_bias: bool | None = None
    mlp_bias: bool = False
    """Whether the family reads mlp_bias at all."""
    qk_norm: Literal["heads", "rows"] | None = None
    """Of queries and keys: every head on its own, or all heads together."""
    windows: bool = False
    """Whether the family reads sliding_window at all."""
    partial: bool = False
    """Whether it reads partial_rotary_factor."""
    hidden_act: bool = True
    """Whether it reads hidden_act."""
    eager: bool = False
    """Whether transformers computes its attention step by step: no other implementation there has a soft cap."""
    layer_ropes: bool = False
    """Whether each type of layer has a rope of its own."""
    transformers_js: bool = True
    """Whether transformers.js 4.3 knows the model_type (src/configs.js there)."""
    genai: str = "llama"
    """model.type in genai_config.json: what onnxruntime-genai calls a family that it runs in the same way."""
    read: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    """Further fields of Decoder."""


def given(config: Config, key: str) -> Any:
    """A value that this family's forward needs. Refusal if the config does not say it."""
    if config.get(key) is None:
        raise Refusal(f"config.json of this {config.get('model_type', 'model')} lacks {key}")
    return config[key]


def _smollm3(config: Config) -> dict[str, Any]:
    """Layers without positions, by no_rope_layers: 1 for those with."""
    turned, layers = given(config, "no_rope_layers"), int(config["num_hidden_layers"])
    if len(turned) < layers:
        raise Refusal(f"config.json of this smollm3 has {layers} layers, and no_rope_layers tells of {len(turned)}")
    return {"rotary": tuple("" if one else None for one in turned[:layers])}


def _granite(config: Config) -> dict[str, Any]:
    """Four multipliers."""
    names = {
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention_scale": "attention_multiplier",
    }
    scales = {field: float(given(config, key)) for field, key in names.items()}
    return {**scales, "logits_scale": 1 / float(given(config, "logits_scaling"))}


def _ministral3(config: Config) -> dict[str, Any]:
    """Behind the original context queries grow with the logarithm of their position, which no builder has: it ends there."""
    rope = given(config, "rope_parameters")
    if rope.get("llama_4_scaling_beta") is None or rope.get("original_max_position_embeddings") is None:
        raise Refusal(
            "rope_parameters of this ministral3 lack llama_4_scaling_beta or original_max_position_embeddings"
        )
    longest = int(config.get("max_position_embeddings") or 2048)
    return {"max_positions": min(longest, int(rope["original_max_position_embeddings"]))}


def _phi3(config: Config) -> dict[str, Any]:
    """transformers loads no other ropes."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (kind := rope.get("rope_type") or rope.get("type") or "default") not in ("default", "longrope"):
        raise Refusal(f"rope_type {kind!r} of this phi3 is not known; known: default, longrope")
    return {"fused": True}


_CAPS = {"attention_cap": "attn_logit_softcapping", "logits_cap": "final_logit_softcapping"}


def _gemma2(config: Config) -> dict[str, Any]:
    """Gemma 3's norms and scales, and soft caps."""
    return {**_gemma(config), **{field: config.get(key) for field, key in _CAPS.items()}}


def _gemma3(config: Config) -> dict[str, Any]:
    for key in _CAPS.values():
        if config.get(key):
            raise Refusal(f"{key} {config[key]!r} of this gemma3_text is not known; known: none")
    return _gemma(config)


def _gemma(config: Config) -> dict[str, Any]:
    """Norms on both sides, gains 1 + w, GELU, embeddings times sqrt(hidden_size)."""
    kind = config["model_type"]
    if config.get("use_bidirectional_attention"):
        raise Refusal(f"use_bidirectional_attention of this {kind} is not known; known: none")
    if (activation := given(config, "hidden_activation")) != "gelu_pytorch_tanh":
        raise Refusal(f"hidden_activation {activation!r} of this {kind} is not known; known: gelu_pytorch_tanh")
    return {
        "norms": SANDWICH,
        "norm_offset": 1.0,
        "activation": "gelu_tanh",
        "embedding_scale": int(config["hidden_size"]) ** 0.5,
        "attention_scale": float(given(config, "query_pre_attn_scalar")) ** -0.5,
    }


FAMILIES: dict[str, Family] = {
    "llama": Family(mlp_bias=True),  # Llama 1, 2, 3.x, SmolLM2, TinyLlama
    "mistral": Family(qkv_bias=False, windows=True, genai="mistral"),
    "ministral": Family(qkv_bias=False, windows=True, genai="mistral"),
    "ministral3": Family(qkv_bias=False, windows=True, genai="mistral", read=_ministral3),
    "qwen2": Family(qkv_bias=True, windows=True, genai="qwen2"),  # Qwen2, Qwen2.5
    "qwen3": Family(qk_norm="heads", windows=True, genai="qwen3"),
    "olmo2": Family(qk_norm="rows", genai="olmo", read=lambda config: {"norms": POST}),
    "internlm3": Family(mlp_bias=True, transformers_js=False),  # transformers runs it in LlamaForCausalLM
    "iquestcoder": Family(mlp_bias=True, transformers_js=False),  # the same
    "smollm3": Family(mlp_bias=True, windows=True, genai="smollm3", read=_smollm3),
    "granite": Family(mlp_bias=True, genai="granite", read=_granite),
    "gemma3_text": Family(
        qk_norm="heads", windows=True, layer_ropes=True, hidden_act=False, genai="gemma3_text", read=_gemma3
    ),
    "gemma2": Family(windows=True, hidden_act=False, eager=True, genai="gemma2", read=_gemma2),
    "phi3": Family(qkv_bias=False, windows=True, partial=True, genai="phi3", read=_phi3),  # Phi-3, 3.5, 4-mini
    "cwm": Family(qkv_bias=False, mlp_bias=True, windows=True, transformers_js=False),
}
