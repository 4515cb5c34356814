# SPDX-License-Identifier: Apache-2.0
"""What mlx-lm computes with a folder's config.json (mlx_lm/models/llama.py, qwen2.py, qwen3.py; Mistral runs as Llama)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Fact, Unreadable
from dlqat.runtime_tests.readers.expression import Node

MODELS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
EMBEDDING, NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"
_INNER = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
_LINEAR = (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))


@dataclass(frozen=True, eq=False)
class Meaning:
    """config.json, as a model of mlx-lm reads it."""

    config: Mapping[str, Any]

    @property
    def model(self) -> str:
        kind = self.config.get("model_type")
        if kind not in MODELS:
            raise Unreadable(f"config.json: model_type {kind!r} is not known; known: {', '.join(MODELS)}")
        return MODELS[kind]

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def heads(self) -> tuple[int, int]:
        heads = int(self.config["num_attention_heads"])
        return heads, int(self.config.get("num_key_value_heads") or heads)

    @property
    def head_dim(self) -> int:
        own = None if self.model == "qwen2" else self.config.get("head_dim")
        return int(own or self.config["hidden_size"] // self.heads[0])

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", True))

    def modules(self) -> Iterator[str]:
        """Everything that has parameters."""
        inner = (*_LINEAR, *(_INNER if self.model == "qwen3" else _INNER[:2]))
        yield from (EMBEDDING, NORM, *([] if self.tied else [HEAD]))
        yield from (f"model.layers.{i}.{name}" for i in range(self.layers) for name in inner)

    def biased(self, module: str) -> bool:
        """Whether the model of that name has a bias there."""
        inner = module.rpartition(".")[2]
        match self.model, inner:
            case "qwen2", ("q_proj" | "k_proj" | "v_proj"):
                return True
            case "llama", ("q_proj" | "k_proj" | "v_proj" | "o_proj"):
                return bool(self.config.get("attention_bias"))
            case "llama", ("gate_proj" | "up_proj" | "down_proj"):
                return bool(self.config.get("mlp_bias"))
            case _:
                return False


def facts(m: Meaning) -> Iterator[Fact]:
    """Numbers of the forward. Windows: a layer that config.json calls sliding, in Llama alone."""

    def one(kind: Any, where: str, value: float) -> Fact:
        return Fact(kind, where, np.array([value], np.float32))

    for module in m.modules():
        if "norm" in module:
            yield one("epsilon", module, float(m.config["rms_norm_eps"]))
    kinds = m.config.get("layer_types") or ["full_attention"] * m.layers
    for layer in range(m.layers):
        at = f"model.layers.{layer}.self_attn"
        sliding = m.model == "llama" and kinds[layer] == "sliding_attention"
        yield one("scale", at, m.head_dim**-0.5)
        yield one("window", at, float(m.config["sliding_window"]) if sliding else np.inf)
    yield Fact("rope.frequencies", "rope", _frequencies(m))


def _frequencies(m: Meaning) -> NDArray[np.float32]:
    """mlx_lm/models/rope_utils.py, in float64."""
    nested = m.config.get("rope_parameters") or {} if m.model == "qwen3" else {}
    default = 10000.0 if m.model == "llama" else 1e6
    base = float(m.config.get("rope_theta") or nested.get("rope_theta") or default)
    scaling = m.config.get("rope_scaling") or nested
    wave = base ** (np.arange(0, m.head_dim, 2) / m.head_dim)
    match scaling.get("type") or scaling.get("rope_type", "default"):
        case "default":
            return (1 / wave).astype(np.float32)
        case "linear":
            return (1 / wave / float(scaling["factor"])).astype(np.float32)
        case "llama3":
            return (1 / _llama3(wave, scaling)).astype(np.float32)
        case other:
            raise Unreadable(f"config.json: rope type {other!r} is not known")


def _llama3(wave: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    factor, low, high = scaling["factor"], scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
    context = scaling.get("original_max_position_embeddings", 8192)
    length = 2 * math.pi * wave
    smooth = (context / length - low) / (high - low)
    between = (length > context / high) & (length < context / low)
    slow = np.where(length > context / low, wave * factor, wave)
    return np.where(between, slow / ((1 - smooth) / factor + smooth), slow)


def forward(m: Meaning, rows: Mapping[str, int]) -> Node:
    """The logits of all positions; `rows`: outputs of each matrix in the file."""
    h = Node("embed", EMBEDDING, (Node("ids"),))
    for layer in range(m.layers):
        h = _block(m, rows, f"model.layers.{layer}", layer, h)
    n = Node("norm", NORM, (h,))
    return Node("linear", HEAD, (n,), rows[EMBEDDING if m.tied else HEAD])


def _block(m: Meaning, rows: Mapping[str, int], at: str, layer: int, h: Node) -> Node:
    def linear(name: str, x: Node) -> Node:
        return Node("linear", f"{at}.{name}", (x,), rows[f"{at}.{name}"], m.biased(f"{at}.{name}"))

    def norm(name: str, x: Node) -> Node:
        return Node("norm", f"{at}.{name}", (x,))

    n = norm("input_layernorm", h)
    q, k, v = (linear(f"self_attn.{x}_proj", n) for x in "qkv")
    if m.model == "qwen3":
        q, k = norm("self_attn.q_norm", q), norm("self_attn.k_norm", k)
    heads, kv_heads = m.heads
    a = Node("attention", f"{layer} {heads}/{kv_heads}", (Node("rope", "", (q,)), Node("rope", "", (k,)), v))
    h = Node("add", "", (h, linear("self_attn.o_proj", a)))
    n = norm("post_attention_layernorm", h)
    gated = Node("mul", "", (Node("silu", "", (linear("mlp.gate_proj", n),)), linear("mlp.up_proj", n)))
    return Node("add", "", (h, linear("mlp.down_proj", gated)))
