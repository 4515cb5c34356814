# SPDX-License-Identifier: Apache-2.0
"""What the road must know of a decoder, read from its Hugging Face config: one value, one table.

Every builder works from `Decoder` and nothing else. A family that is not in FAMILIES is refused:
a forward that is nearly right is the silent error this project exists against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat import config_schema
from dlqat.refusal import Refusal

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
"""Module names of the two matrices outside the blocks, in transformers."""

Config = Mapping[str, Any]
"""The content of a Hugging Face config.json."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a model_type fixes in code rather than in its config. None: the config says it."""

    qkv_bias: bool | None = None
    qk_norm: bool = False
    windows: bool = False
    """Whether the family reads sliding_window at all."""


FAMILIES: dict[str, Family] = {
    "llama": Family(),  # Llama 1, 2, 3.x, SmolLM2, TinyLlama
    "mistral": Family(qkv_bias=False, windows=True),
    "qwen2": Family(qkv_bias=True, windows=True),  # Qwen2, Qwen2.5
    "qwen3": Family(qk_norm=True, windows=True),
}


@dataclass(frozen=True, slots=True)
class Decoder:
    """Facts of a decoder-only transformer with pre-RMSNorm, rotary positions and a gated SiLU MLP."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    max_positions: int
    windows: tuple[int | None, ...]
    """Per layer: how many latest positions attention sees (itself included), None for all."""
    rope: Mapping[str, Any]
    """rope_parameters of the config: rope_type, rope_theta and the type's own."""

    def linears(self) -> dict[str, tuple[int, int]]:
        """Module name -> (out, in) of every block linear, in forward order."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        hidden, wide = self.hidden_size, self.intermediate_size
        shapes = {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
        }
        return {f"model.layers.{i}.{name}": s for i in range(self.layers) for name, s in shapes.items()}

    def rope_tables(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin, float32 [positions, head_dim / 2], as transformers computes them in float32."""
        angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(self)[None]
        return np.cos(angles), np.sin(angles)


def read(config: Config) -> Decoder:
    """The facts of a config.json. Refusal for an unknown family or a variant that no builder has."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise Refusal(f"architecture {kind!r} is not known; known: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[kind]
    config_schema.check(config, f"config.json of this {kind}")
    if config.get("hidden_act", "silu") != "silu":
        raise Refusal(f"hidden_act {config['hidden_act']!r} of this {kind} is not known; known: silu")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    bias = bool(config.get("attention_bias", False))
    decoder = Decoder(
        family=kind,
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        # Qwen2 has biases on q, k and v only, Mistral none, whatever the config says.
        output_bias=bias if family.qkv_bias is None else False,
        mlp_bias=bool(config.get("mlp_bias", False)) if kind == "llama" else False,
        qk_norm=family.qk_norm,
        tied=bool(config.get("tie_word_embeddings", False)),
        max_positions=int(config.get("max_position_embeddings", 2048)),
        windows=_windows(config, family),
        rope=_rope(config),
    )
    inverse_frequencies(decoder)  # refuses an unknown rope_type now
    return decoder


def _windows(config: Config, family: Family) -> tuple[int | None, ...]:
    layers, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    if not family.windows or window is None:
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None:  # before transformers 4.53; Mistral windows every layer, Qwen those from max_window_layers on
        if config["model_type"] == "mistral":
            kinds = ["sliding_attention"] * layers
        else:
            first = int(config.get("max_window_layers", layers)) if config.get("use_sliding_window") else layers
            kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return tuple(int(window) if k == "sliding_attention" else None for k in kinds)


def _rope(config: Config) -> dict[str, Any]:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    part = rope.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    if part != 1.0:
        raise Refusal(f"partial_rotary_factor {part!r} of this {config['model_type']} is not known; known: 1.0")
    return rope


def inverse_frequencies(decoder: Decoder) -> NDArray[np.float32]:
    """float32 [head_dim / 2]; rope types default, linear and llama3 (transformers' modeling_rope_utils)."""
    rope, dim = decoder.rope, decoder.head_dim
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    inverse = (1.0 / np.float32(rope["rope_theta"]) ** exponent).astype(np.float32)
    match rope["rope_type"]:
        case "default":
            return inverse
        case "linear":
            return (inverse / np.float32(rope["factor"])).astype(np.float32)
        case "llama3":
            return _llama3(inverse, rope)
        case other:
            raise Refusal(f"rope_type {other!r} is not known; known: default, linear, llama3")


def _llama3(inverse: NDArray[np.float32], rope: Mapping[str, Any]) -> NDArray[np.float32]:
    """Llama 3.1's scaling: long waves divided by factor, short waves kept, a smooth ramp between."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inverse
    smooth = (context / wavelength - low) / (high - low)
    ramp = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(wavelength > context / low, inverse / factor, ramp)
    return np.where(wavelength < context / high, inverse, scaled).astype(np.float32)
