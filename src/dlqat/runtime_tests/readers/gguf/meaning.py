# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp computes with a file: its forward of each architecture (src/models/NAME.cpp) as an expression, with the
numbers of the metadata. What differs between architectures is in rules.py. Tensors that a file may have or not (biases) are
where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Fact, Unreadable
from dlqat.runtime_tests.readers.expression import Node, parted
from dlqat.runtime_tests.readers.gguf.file import File
from dlqat.runtime_tests.readers.gguf.rules import GEMMA3, NORMS, QK_NORMS, RULES, Rules

COUNTS = (
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "rope.dimension_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
)
NEEDED = {*COUNTS, "attention.layer_norm_rms_epsilon", "rope.freq_base"}
SCALING = {"rope.scaling.type", "rope.scaling.factor"}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ROPE_FREQS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"


@dataclass(frozen=True, eq=False)
class Meaning:
    """A file's metadata under its architecture's prefix."""

    file: File
    architecture: str
    values: Mapping[str, Any]

    @property
    def rules(self) -> Rules:
        return RULES[self.architecture]

    def count(self, key: str) -> int:
        return int(self.values[key])

    @property
    def heads(self) -> tuple[int, int]:
        return self.count("attention.head_count"), self.count("attention.head_count_kv")

    @property
    def tied(self) -> bool:
        return "output.weight" not in self.file.tensors

    def module(self, name: str) -> str | None:
        """transformers' name of a tensor's module; None for one that llama.cpp does not read."""
        stem = name.rpartition(".")[0]
        if stem in OUTER:
            return OUTER[stem]
        block = stem.split(".")
        inside = len(block) == 3 and block[0] == "blk" and block[1].isdigit()
        if not inside or int(block[1]) >= self.count("block_count"):
            return None
        inner = self.rules.modules.get(block[2])
        if inner is None or (name.endswith(".bias") and block[2] not in self.rules.biases):
            return None
        return f"model.layers.{int(block[1])}.{inner}"

    def rows(self, module: str) -> int | None:
        """The heads whose rows stand in pairs; None for rows in order."""
        which = {"q_proj": 0, "k_proj": 1}.get(module.rpartition(".")[2])
        return None if which is None or not self.rules.interleaved else self.heads[which]

    @property
    def rope_tensors(self) -> tuple[str, ...]:
        """The tensors of divisors that its forward reads."""
        return ((ROPE_FREQS,) if self.rules.rope_factors else ()) + ((SHORT, LONG) if self.rules.longrope else ())

    def divisors(self) -> str | None:
        """The tensor of those that turn its positions."""
        if self.rules.longrope:
            original = int(self.values.get("rope.scaling.original_context_length", self.count("context_length")))
            name = LONG if self.count("context_length") > original else SHORT
        else:
            name = ROPE_FREQS
        return name if name in self.rope_tensors and name in self.file.tensors else None

    def factor(self, key: str) -> float:
        """A multiplier of the metadata; llama.cpp takes 0 and none for 1."""
        return float(self.values.get(key) or 1.0)

    def sliding(self, layer: int) -> bool:
        """Whether a layer has a window."""
        period = int(self.values.get("attention.sliding_window_pattern", self.rules.period))
        return self.rules.windows and (layer + 1) % period != 0

    def rope(self, layer: int) -> str | None:
        """The name of a layer's rope; None for a layer without positions."""
        if self.rules.windows and self.rules.local_rope:
            return "sliding_attention" if self.sliding(layer) else "full_attention"
        step = self.rules.unturned
        return None if step is not None and (layer + 1) % step == 0 else ""


def read(file: File) -> Meaning:
    """Unreadable if a key is missing, or the architecture is another."""
    arch = file.metadata.get("general.architecture")
    if arch not in RULES:
        raise Unreadable(f"architecture {arch!r} is not known; known: {', '.join(RULES)}")
    prefix = f"{arch}."
    values = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
    missing = [k for k in sorted(NEEDED | RULES[arch].needed) if k not in values]
    if missing:
        raise Unreadable(f"metadata {prefix}{missing[0]} is missing")
    return Meaning(file, arch, values)


def faults(m: Meaning) -> Iterator[str]:
    """Keys that nobody here knows, and sizes that the tensors do not have."""
    for key in sorted(set(m.values) - NEEDED - SCALING - m.rules.needed - m.rules.read):
        yield f"{m.architecture}.{key} = {m.values[key]!r}: what it changes is not known"
    shapes = {name: t.shape for name, t in m.file.tensors.items()}
    heads, kv_heads = m.heads
    size, width, wide = m.count("attention.key_length"), m.count("embedding_length"), m.count("feed_forward_length")
    wanted = {"token_embd.weight": (m.count("vocab_size"), width)}
    if m.rules.fused:
        wanted |= {"blk.0.ffn_up.weight": (2 * wide, width)}
        wanted |= {"blk.0.attn_qkv.weight": ((heads + 2 * kv_heads) * size, width)}
    else:
        wanted |= {"blk.0.ffn_gate.weight": (wide, width)}
        wanted |= {"blk.0.attn_q.weight": (heads * size, width), "blk.0.attn_k.weight": (kv_heads * size, width)}
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            yield f"{name}: has shape {shapes.get(name)}, the metadata says {shape}"
    if m.count("attention.value_length") != size:
        yield f"attention.value_length is {m.count('attention.value_length')}, heads have {size}"
    for name in (ROPE_FREQS, SHORT, LONG):
        if name in shapes and name not in m.rope_tensors:
            yield f"{name}: {m.architecture} does not read it"


def facts(m: Meaning) -> Iterator[Fact]:
    """Numbers of the forward. Where llama.cpp has no windows, what ends sight is the text's own end."""

    def one(kind: Any, where: str, value: float) -> Fact:
        return Fact(kind, where, np.array([value], np.float32))

    for name in m.file.tensors:
        if "norm" in name and (module := m.module(name)) is not None:
            yield one("epsilon", module, m.values["attention.layer_norm_rms_epsilon"])
    for layer in range(m.count("block_count")):
        at = f"model.layers.{layer}.self_attn"
        yield one("scale", at, _attention_scale(m))
        yield one("window", at, m.count("attention.sliding_window" if m.sliding(layer) else "context_length"))
        if m.rules.caps:
            yield one("cap", at, float(m.values["attn_logit_softcapping"]))
    if m.rules.caps:
        yield one("cap", f"{OUTER['output']}.capped", float(m.values["final_logit_softcapping"]))
    for where, value in _factors(m).items():
        yield one("factor", where, value)
    for name in sorted({n for n in map(m.rope, range(m.count("block_count"))) if n is not None}):
        yield Fact("rope.frequencies", f"rope.{name}.frequencies" if name else "rope", _frequencies(m, name))
    if m.rules.longrope:
        yield one("rope.amplitude", "rope.amplitude", float(m.values.get("rope.scaling.attn_factor", 1.0)))


def _attention_scale(m: Meaning) -> float:
    """Of the queries; NaN: head_dim ** -0.5."""
    if m.rules.multipliers:
        return float(m.values.get("attention.scale") or np.nan)
    if m.rules.windows and m.count("block_count") == m.rules.large:
        return float((m.count("embedding_length") // m.heads[0]) ** -0.5)
    return np.nan


def _factors(m: Meaning) -> dict[str, float]:
    """Where something is multiplied by a number other than 1."""
    found = dict[str, float]()
    if m.rules.root:
        found["model.embed_tokens.scaled"] = m.count("embedding_length") ** 0.5
    if m.rules.multipliers:
        found["model.embed_tokens.scaled"] = m.factor("embedding_scale")
        found["lm_head.scaled"] = 1 / m.factor("logit_scale")
        for layer in range(m.count("block_count")):
            for part in ("self_attn", "mlp"):
                found[f"model.layers.{layer}.{part}.scaled"] = m.factor("residual_scale")
    return {where: value for where, value in found.items() if value != 1}


def _frequencies(m: Meaning, name: str) -> NDArray[np.float32]:
    dim, base, scaling = m.count("rope.dimension_count"), m.values["rope.freq_base"], m.values.get("rope.scaling.type")
    if name == "sliding_attention":
        base, scaling = m.values.get("rope.freq_base_swa", GEMMA3.local_base), None
    found = float(base) ** (-np.arange(0, dim, 2) / dim)
    match scaling:
        case None | "none":
            pass
        case "linear":
            found /= float(m.values["rope.scaling.factor"])
        case other:
            raise Unreadable(f"rope.scaling.type {other!r} is not known")
    if (divisors := m.divisors()) is not None:
        found /= m.file.bytes_of(divisors).view("<f4").astype(np.float64)
    return found.astype(np.float32)


def forward(m: Meaning) -> Node:
    """The logits of all positions."""
    factors = _factors(m)
    h = _scaled(factors, OUTER["token_embd"], Node("embed", OUTER["token_embd"], (Node("ids"),)))
    for layer in range(m.count("block_count")):
        h = _block(m, factors, layer, h)
    n = Node("norm", OUTER["output_norm"], (h,))
    name = "token_embd.weight" if m.tied else "output.weight"
    rows, biased = m.file.tensors[name].shape[0], "output.bias" in m.file.tensors
    logits = _scaled(factors, OUTER["output"], Node("linear", OUTER["output"], (n,), rows, biased))
    return Node("cap", f"{OUTER['output']}.capped", (logits,)) if m.rules.caps else logits


def _scaled(factors: Mapping[str, float], of: str, x: Node) -> Node:
    return Node("scale", f"{of}.scaled", (x,)) if f"{of}.scaled" in factors else x


def _block(m: Meaning, factors: Mapping[str, float], layer: int, h: Node) -> Node:
    def linear(name: str, x: Node) -> Node:
        stem = f"blk.{layer}.{name}"
        tensor = m.file.tensors.get(f"{stem}.weight")
        if tensor is None:
            raise Unreadable(f"{stem}.weight is missing")
        return Node("linear", f"{at}.{m.rules.modules[name]}", (x,), tensor.shape[0], f"{stem}.bias" in m.file.tensors)

    def norm(name: str, x: Node) -> Node:
        return Node("norm", f"{at}.{m.rules.modules[name]}", (x,)) if name in m.rules.modules else x

    at, (heads, kv_heads) = f"model.layers.{layer}", m.heads
    before_attention, after_attention, before_mlp, after_mlp = NORMS
    n = norm(before_attention, h)
    if m.rules.fused:
        size = m.count("attention.key_length")
        q, k, v = parted(linear("attn_qkv", n), [size * heads, size * kv_heads, size * kv_heads])
    else:
        q, k, v = (linear(f"attn_{x}", n) for x in "qkv")
    q, k = (norm(name, x) for name, x in zip(QK_NORMS, (q, k), strict=True))
    if (rope := m.rope(layer)) is not None:
        q, k = Node("rope", rope, (q,)), Node("rope", rope, (k,))
    y = norm(after_attention, linear("attn_output", Node("attention", f"{layer} {heads}/{kv_heads}", (q, k, v))))
    h = Node("add", "", (h, _scaled(factors, f"{at}.self_attn", y)))
    n = norm(before_mlp, h)
    if m.rules.fused:
        gate, up = parted(linear("ffn_up", n), [m.count("feed_forward_length")] * 2)
    else:
        gate, up = linear("ffn_gate", n), linear("ffn_up", n)
    gated = Node("mul", "", (Node(m.rules.activation, "", (gate,)), up))
    y = norm(after_mlp, linear("ffn_down", gated))
    return Node("add", "", (h, _scaled(factors, f"{at}.mlp", y)))
