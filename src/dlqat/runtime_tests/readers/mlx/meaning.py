# SPDX-License-Identifier: Apache-2.0
"""What mlx-lm computes with a folder's config.json (mlx_lm/models/NAME.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Fact, Unreadable
from dlqat.runtime_tests.readers.expression import Node, parted

EMBEDDING, NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_LINEAR = (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
_FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_PLACES = ("before_attention", "after_attention", "before_mlp", "after_mlp")
_SANDWICH: Mapping[str, str] = dict(
    zip(
        _PLACES,
        (f"{x}_layernorm" for x in ("input", "post_attention", "pre_feedforward", "post_feedforward")),
        strict=True,
    )
)
_POST: Mapping[str, str] = {place: _SANDWICH[place] for place in ("after_attention", "after_mlp")}


@dataclass(frozen=True, slots=True)
class Model:
    """What a module of mlx_lm.models has in code."""

    name: str
    biases: Mapping[str, str | None] = field(default_factory=dict[str, "str | None"])
    """Linear -> the key that asks for its bias; None: it always has one."""
    norms: Mapping[str, str] = field(
        default_factory=lambda: {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
    )
    qk_norm: bool = False
    head_dim: bool = True
    """Whether it reads one."""
    base: float = 10000.0
    """Of the rope, where config.json has none."""
    nested: bool = False
    """Whether it reads rope_parameters."""
    fused: bool = False
    """Whether q, k and v are one matrix, gate and up another; it reads partial_rotary_factor, too."""
    gemma: bool = False
    """GELU, gains 1 + w, the embedding times a bfloat16 root, windows but in every Nth layer."""


_ATTENTION = tuple(f"{x}_proj" for x in "qkvo")
_ASKED: dict[str, str | None] = {
    **dict.fromkeys(_ATTENTION, "attention_bias"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp_bias"),
}
_LLAMA = Model("llama", _ASKED)
MODELS = {
    **dict.fromkeys(("llama", "mistral", "iquestcoder"), _LLAMA),
    "qwen2": Model("qwen2", dict.fromkeys(_ATTENTION[:3]), head_dim=False, base=1e6),
    "qwen3": Model("qwen3", qk_norm=True, base=1e6, nested=True),
    "smollm3": Model("smollm3", _ASKED),
    "granite": Model("granite", _ASKED, head_dim=False),
    "gemma3_text": Model("gemma3_text", norms=_SANDWICH, qk_norm=True, base=1e6, gemma=True),
    "olmo2": Model("olmo2", _ASKED, _POST, qk_norm=True),
    "phi3": Model("phi3", head_dim=False, fused=True),
}
"""By model_type; some run as another."""


@dataclass(frozen=True, eq=False)
class Meaning:
    """config.json, as a model of mlx-lm reads it."""

    config: Mapping[str, Any]

    @property
    def model(self) -> Model:
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
        own = self.config.get("head_dim") if self.model.head_dim else None
        return int(own or self.config["hidden_size"] // self.heads[0])

    @property
    def turned(self) -> int:
        """How many numbers of a head turn."""
        part = float(self.config.get("partial_rotary_factor") or 1.0) if self.model.fused else 1.0
        return int(self.head_dim * part)

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", True))

    def modules(self) -> Iterator[str]:
        """Everything that has parameters."""
        inner = (
            *(_FUSED if self.model.fused else _LINEAR),
            *self.model.norms.values(),
            *(_QK_NORMS if self.model.qk_norm else ()),
        )
        yield from (EMBEDDING, NORM, *([] if self.tied else [HEAD]))
        yield from (f"model.layers.{i}.{name}" for i in range(self.layers) for name in inner)

    def biased(self, module: str) -> bool:
        """Whether the model of that name has a bias there."""
        inner = module.rpartition(".")[2]
        if inner not in self.model.biases:
            return False
        key = self.model.biases[inner]
        return key is None or bool(self.config.get(key))

    @property
    def gain(self) -> float:
        """What norms add to their weight."""
        return 1.0 if self.model.gemma else 0.0

    def sliding(self, layer: int) -> bool:
        """Whether a layer has a window."""
        if self.model.gemma:
            return (layer + 1) % int(self.config.get("sliding_window_pattern", 6)) != 0
        kinds = self.config.get("layer_types")
        return bool(kinds) and self.model.name in ("llama", "smollm3") and kinds[layer] == "sliding_attention"

    def rope(self, layer: int) -> str | None:
        """The name of a layer's rope; None for a layer without positions."""
        if self.model.gemma:
            return "sliding_attention" if self.sliding(layer) else "full_attention"
        if self.model.name != "smollm3":
            return ""
        step = int(self.config.get("no_rope_layer_interval", 4))
        turned = self.config.get("no_rope_layers") or [(i + 1) % step for i in range(self.layers)]
        return "" if turned[layer] else None

    def scale(self) -> float:
        """Of the queries."""
        match self.model.name:
            case "gemma3_text":
                return float(self.config.get("query_pre_attn_scalar", 256)) ** -0.5
            case "granite":
                return float(self.config["attention_multiplier"])
            case _:
                return float(self.head_dim**-0.5)

    def factors(self) -> dict[str, float]:
        """Where something is multiplied by a number other than 1."""
        found = dict[str, float]()
        if self.model.gemma:
            found[f"{EMBEDDING}.scaled"] = _bfloat16(int(self.config["hidden_size"]) ** 0.5)
        if self.model.name == "granite":
            found[f"{EMBEDDING}.scaled"] = float(self.config["embedding_multiplier"])
            found[f"{HEAD}.scaled"] = 1 / float(self.config["logits_scaling"])
            for layer in range(self.layers):
                for part in ("self_attn", "mlp"):
                    found[f"model.layers.{layer}.{part}.scaled"] = float(self.config["residual_multiplier"])
        return {where: value for where, value in found.items() if value != 1}


def _bfloat16(value: float) -> float:
    """The nearest number with 8 significant bits."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(fraction * 256), exponent - 8)


def facts(m: Meaning) -> Iterator[Fact]:
    """Numbers of the forward."""

    def one(kind: Any, where: str, value: float) -> Fact:
        return Fact(kind, where, np.array([value], np.float32))

    for module in m.modules():
        if "norm" in module:
            yield one("epsilon", module, float(m.config["rms_norm_eps"]))
    for layer in range(m.layers):
        at = f"model.layers.{layer}.self_attn"
        yield one("scale", at, m.scale())
        yield one("window", at, float(m.config["sliding_window"]) if m.sliding(layer) else np.inf)
    for where, value in m.factors().items():
        yield one("factor", where, value)
    for name in sorted({n for n in map(m.rope, range(m.layers)) if n is not None}):
        yield Fact("rope.frequencies", f"rope.{name}.frequencies" if name else "rope", _frequencies(m, name))


def _frequencies(m: Meaning, name: str) -> NDArray[np.float32]:
    """mlx_lm/models/rope_utils.py, in float64."""
    if name == "sliding_attention":
        local = float(m.config.get("rope_local_base_freq", 10000.0))
        return (1 / local ** (np.arange(0, m.head_dim, 2) / m.head_dim)).astype(np.float32)
    nested = (m.config.get("rope_parameters") or {}) if m.model.nested else {}
    base = float(m.config.get("rope_theta") or nested.get("rope_theta") or m.model.base)
    scaling = m.config.get("rope_scaling") or nested
    wave = base ** (np.arange(0, m.turned, 2) / m.turned)
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
    factors = m.factors()
    h = _scaled(factors, EMBEDDING, Node("embed", EMBEDDING, (Node("ids"),)))
    for layer in range(m.layers):
        h = _block(m, factors, rows, layer, h)
    n = Node("norm", NORM, (h,))
    return _scaled(factors, HEAD, Node("linear", HEAD, (n,), rows[EMBEDDING if m.tied else HEAD]))


def _scaled(factors: Mapping[str, float], of: str, x: Node) -> Node:
    return Node("scale", f"{of}.scaled", (x,)) if f"{of}.scaled" in factors else x


def _block(m: Meaning, factors: Mapping[str, float], rows: Mapping[str, int], layer: int, h: Node) -> Node:
    at, norms = f"model.layers.{layer}", m.model.norms

    def linear(name: str, x: Node) -> Node:
        return Node("linear", f"{at}.{name}", (x,), rows[f"{at}.{name}"], m.biased(f"{at}.{name}"))

    def norm(name: str | None, x: Node) -> Node:
        return x if name is None else Node("norm", f"{at}.{name}", (x,))

    n = norm(norms.get("before_attention"), h)
    heads, kv_heads = m.heads
    if m.model.fused:
        sizes = [m.head_dim * heads, m.head_dim * kv_heads, m.head_dim * kv_heads]
        q, k, v = parted(linear("self_attn.qkv_proj", n), sizes)
    else:
        q, k, v = (linear(f"self_attn.{x}_proj", n) for x in "qkv")
    if m.model.qk_norm:
        q, k = (norm(name, x) for name, x in zip(_QK_NORMS, (q, k), strict=True))
    if (rope := m.rope(layer)) is not None:
        q, k = Node("rope", rope, (q,)), Node("rope", rope, (k,))
    a = Node("attention", f"{layer} {heads}/{kv_heads}", (q, k, v))
    y = norm(norms.get("after_attention"), linear("self_attn.o_proj", a))
    h = Node("add", "", (h, _scaled(factors, f"{at}.self_attn", y)))
    n = norm(norms.get("before_mlp"), h)
    if m.model.fused:
        gate, up = parted(linear("mlp.gate_up_proj", n), [int(m.config["intermediate_size"])] * 2)
    else:
        gate, up = linear("mlp.gate_proj", n), linear("mlp.up_proj", n)
    act = Node("gelu" if m.model.gemma else "silu", "", (gate,))
    y = norm(norms.get("after_mlp"), linear("mlp.down_proj", Node("mul", "", (act, up))))
    return Node("add", "", (h, _scaled(factors, f"{at}.mlp", y)))
