# SPDX-License-Identifier: Apache-2.0
"""What the road must know of a decoder, read from its Hugging Face config: one value, one table.

Every builder works from `Decoder` and nothing else. A family that is not in FAMILIES is refused:
a forward that is nearly right is the silent error this project exists against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlqat import config_schema, rope
from dlqat.families import FAMILIES, PRE, Config, Family, Norms, given
from dlqat.refusal import Refusal
from dlqat.rope import Rope

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
"""Module names of the two matrices outside the blocks, in transformers."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Facts of a decoder-only transformer with RMSNorms, rotary positions and a gated MLP."""

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
    qk_norm: Literal["heads", "rows"] | None
    tied: bool
    max_positions: int
    windows: tuple[int | None, ...]
    """Per layer: how many latest positions attention sees (itself included), None for all."""
    ropes: Mapping[str, Rope]
    """By name: "" where all layers have the same."""
    rotary: tuple[str | None, ...]
    """Per layer: the name of the rope that turns its queries and keys, None for a layer without positions."""
    attention_scale: float
    norms: Norms = PRE
    norm_offset: float = 0.0
    """What a norm adds to its stored weight: Gemma multiplies with 1 + w."""
    activation: str = "silu"
    """Of the gate: silu or gelu_tanh."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """What attention and MLP are multiplied by before they are added."""
    logits_scale: float = 1.0
    attention_cap: float | None = None
    """c, where the scores of attention are c tanh(score / c) before the softmax."""
    logits_cap: float | None = None
    fused: bool = False
    """Whether q, k and v are the rows of one matrix, gate and up those of another."""

    @property
    def qkv(self) -> tuple[int, int, int]:
        """How many outputs queries, keys and values are."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """Module name -> (out, in) of every block linear, in forward order."""
        (q, kv, _), hidden, wide = self.qkv, self.hidden_size, self.intermediate_size
        if self.fused:
            first, last = {"self_attn.qkv_proj": (sum(self.qkv), hidden)}, {"mlp.gate_up_proj": (2 * wide, hidden)}
        else:
            first = {f"self_attn.{x}_proj": (n, hidden) for x, n in (("q", q), ("k", kv), ("v", kv))}
            last = {f"mlp.{x}_proj": (wide, hidden) for x in ("gate", "up")}
        shapes = {**first, "self_attn.o_proj": (hidden, q), **last, "mlp.down_proj": (hidden, wide)}
        return {f"model.layers.{i}.{name}": s for i in range(self.layers) for name, s in shapes.items()}

    def factors(self) -> dict[str, float]:
        """Where hidden states and logits are multiplied by a number other than 1, and by which."""
        places = {EMBEDDING: self.embedding_scale, HEAD: self.logits_scale}
        for i in range(self.layers):
            places |= dict.fromkeys((f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"), self.residual_scale)
        return {f"{place}.scaled": factor for place, factor in places.items() if factor != 1}

    def caps(self) -> dict[str, float]:
        """Where numbers go through a soft cap, and its limit."""
        scores = {f"model.layers.{i}.self_attn": self.attention_cap for i in range(self.layers)}
        return {where: cap for where, cap in {**scores, f"{HEAD}.capped": self.logits_cap}.items() if cap is not None}

    def turned(self, name: str) -> int:
        """How many numbers of a head the rope of that name turns: the first of them."""
        return rope.turned(self.ropes[name], self.head_dim)

    def inverse_frequencies(self, name: str = "") -> NDArray[np.float32]:
        """float32 of the rope of that name, one for each pair that it turns."""
        return rope.inverse_frequencies(self.ropes[name], self.head_dim)

    def rope_tables(self, positions: int, name: str = "") -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin, float32 [positions, pairs], times the rope's attention factor, as transformers computes them in float32."""
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.inverse_frequencies(name)[None]
        factor = np.float32(rope.attention_factor(self.ropes[name]))
        return np.cos(angles) * factor, np.sin(angles) * factor


def read(config: Config) -> Decoder:
    """The facts of a config.json. Refusal for an unknown family or a variant that no builder has."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise Refusal(f"architecture {kind!r} is not known; known: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[kind]
    config_schema.check(config, f"config.json of this {kind}")
    if family.hidden_act and config.get("hidden_act", "silu") != "silu":
        raise Refusal(f"hidden_act {config['hidden_act']!r} of this {kind} is not known; known: silu")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    bias = bool(config.get("attention_bias", False))
    head_dim = int(config.get("head_dim") or hidden // heads)
    ropes, rotary = _ropes(config, family)
    decoder = Decoder(
        family=kind,
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        # Qwen2 has biases on q, k and v only, Mistral none, whatever the config says.
        output_bias=bias if family.qkv_bias is None else False,
        mlp_bias=bool(config.get("mlp_bias", False)) and family.mlp_bias,
        qk_norm=family.qk_norm,
        tied=bool(config.get("tie_word_embeddings", False)),
        max_positions=int(config.get("max_position_embeddings", 2048)),
        windows=_windows(config, family),
        ropes=ropes,
        rotary=rotary,
        attention_scale=head_dim**-0.5,
    )
    decoder = replace(decoder, **family.read(config))
    decoder = replace(decoder, ropes={name: ropes[name] for name in ropes if name in decoder.rotary})
    for name in decoder.ropes:
        decoder.inverse_frequencies(name)  # refuses an unknown rope_type now
    longest = min([decoder.max_positions, *map(rope.longest, decoder.ropes.values())])
    return replace(decoder, max_positions=int(longest))


_ALL_LAYERS = ("mistral", "ministral", "ministral3", "phi3")
"""Families of which every layer has the window where no layer_types say otherwise: before transformers 4.53, Ministral 3, Phi 3."""


def _windows(config: Config, family: Family) -> tuple[int | None, ...]:
    layers, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    if not family.windows or window is None:
        return (None,) * layers
    kind = config["model_type"]
    if config.get("layer_types") is not None or kind not in (*_ALL_LAYERS, "qwen2", "qwen3"):
        kinds = _kinds(config)
    elif kind in _ALL_LAYERS:
        kinds = ("sliding_attention",) * layers
    else:  # and of a Qwen those from max_window_layers on
        first = int(config.get("max_window_layers", layers)) if config.get("use_sliding_window") else layers
        kinds = tuple("sliding_attention" if i >= first else "full_attention" for i in range(layers))
    return tuple(int(window) if k == "sliding_attention" else None for k in kinds)


def _kinds(config: Config) -> tuple[str, ...]:
    """layer_types, one for each layer."""
    kinds, layers = tuple(given(config, "layer_types")), int(config["num_hidden_layers"])
    odd = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if odd or len(kinds) != layers:
        said = f"the type {odd[0]!r}" if odd else f"{len(kinds)} entries for {layers} layers"
        raise Refusal(f"layer_types of this {config['model_type']}: {said}; known: full_attention, sliding_attention")
    return kinds


def _ropes(config: Config, family: Family) -> tuple[dict[str, Rope], tuple[str, ...]]:
    """The ropes by name, and which of them each layer has."""
    layers, given_ropes = int(config["num_hidden_layers"]), config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in given_ropes.values()) != family.layer_ropes:
        wanted = "one for each type of layer" if family.layer_ropes else "one for all layers"
        raise Refusal(f"rope_parameters of this {config['model_type']} are not {wanted}")
    if not family.layer_ropes:
        return {"": _rope(config, family.partial)}, ("",) * layers
    kinds = _kinds(config)
    plain = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    return {kind: _rope({**plain, "rope_parameters": given(given_ropes, kind)}) for kind in dict.fromkeys(kinds)}, kinds


def _rope(config: Config, partial: bool = False) -> dict[str, Any]:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    part = rope.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    if part != 1.0 and not partial:
        raise Refusal(f"partial_rotary_factor {part!r} of this {config['model_type']} is not known; known: 1.0")
    if rope["rope_type"] == "longrope":  # transformers prefers the config's own key to the rope's
        original = given({**rope, **config}, key := "original_max_position_embeddings")
        rope |= {
            key: original,
            "factor": rope.get("factor") or int(config.get("max_position_embeddings", 2048)) / original,
        }
    return rope if part == 1.0 else {**rope, "partial_rotary_factor": part}
