# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp computes with a file: its forward of each architecture (src/models/llama.cpp, qwen2.cpp, qwen3.cpp) as
an expression, with the numbers of the metadata. Tensors that a file may have or not (biases) are where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Fact, Unreadable
from dlqat.runtime_tests.readers.expression import Node
from dlqat.runtime_tests.readers.gguf.file import File

INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}
"""Architecture -> whether rotary positions turn neighbours rather than the halves of a head."""
COUNTS = (
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "rope.dimension_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
)
KNOWN = {
    *COUNTS,
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
}
MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, eq=False)
class Meaning:
    """A file's metadata under its architecture's prefix."""

    file: File
    architecture: str
    values: Mapping[str, Any]

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
        if not inside or block[2] not in MODULES or int(block[1]) >= self.count("block_count"):
            return None
        return f"model.layers.{int(block[1])}.{MODULES[block[2]]}"

    def rows(self, module: str) -> int | None:
        """The heads whose rows stand in pairs; None for rows in order."""
        which = {"q_proj": 0, "k_proj": 1}.get(module.rpartition(".")[2])
        return None if which is None or not INTERLEAVED[self.architecture] else self.heads[which]


def read(file: File) -> Meaning:
    """Unreadable if a key is missing, or the architecture is another."""
    arch = file.metadata.get("general.architecture")
    if arch not in INTERLEAVED:
        raise Unreadable(f"architecture {arch!r} is not known; known: {', '.join(INTERLEAVED)}")
    prefix = f"{arch}."
    values = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
    missing = [k for k in KNOWN if k not in values and not k.startswith("rope.scaling")]
    if missing:
        raise Unreadable(f"metadata {prefix}{missing[0]} is missing")
    return Meaning(file, arch, values)


def faults(m: Meaning) -> Iterator[str]:
    """Keys that nobody here knows, and sizes that the tensors do not have."""
    for key in sorted(set(m.values) - KNOWN):
        yield f"{m.architecture}.{key} = {m.values[key]!r}: what it changes is not known"
    shapes = {name: t.shape for name, t in m.file.tensors.items()}
    heads, kv_heads = m.heads
    size = m.count("attention.key_length")
    wanted = {
        "token_embd.weight": (m.count("vocab_size"), m.count("embedding_length")),
        "blk.0.ffn_gate.weight": (m.count("feed_forward_length"), m.count("embedding_length")),
        "blk.0.attn_q.weight": (heads * size, m.count("embedding_length")),
        "blk.0.attn_k.weight": (kv_heads * size, m.count("embedding_length")),
    }
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            yield f"{name}: has shape {shapes.get(name)}, the metadata says {shape}"
    for key in ("attention.value_length", "rope.dimension_count"):
        if m.count(key) != size:
            yield f"{key} is {m.count(key)}, heads have {size}"


def facts(m: Meaning) -> Iterator[Fact]:
    """Numbers of the forward. llama.cpp has no windows here: what ends sight is the text's own end."""

    def one(kind: Any, where: str, value: float) -> Fact:
        return Fact(kind, where, np.array([value], np.float32))

    for name in m.file.tensors:
        if "norm" in name and (module := m.module(name)) is not None:
            yield one("epsilon", module, m.values["attention.layer_norm_rms_epsilon"])
    for layer in range(m.count("block_count")):
        at = f"model.layers.{layer}.self_attn"
        yield one("scale", at, np.nan)
        yield one("window", at, m.count("context_length"))
    yield Fact("rope.frequencies", "rope", _frequencies(m))


def _frequencies(m: Meaning) -> NDArray[np.float32]:
    dim = m.count("rope.dimension_count")
    found = float(m.values["rope.freq_base"]) ** (-np.arange(0, dim, 2) / dim)
    match m.values.get("rope.scaling.type", "none"):
        case "none":
            pass
        case "linear":
            found /= float(m.values["rope.scaling.factor"])
        case other:
            raise Unreadable(f"rope.scaling.type {other!r} is not known")
    if ROPE_FREQS in m.file.tensors and m.architecture == "llama":
        found /= m.file.bytes_of(ROPE_FREQS).view("<f4").astype(np.float64)
    return found.astype(np.float32)


def forward(m: Meaning) -> Node:
    """The logits of all positions."""
    h = Node("embed", OUTER["token_embd"], (Node("ids"),))
    for layer in range(m.count("block_count")):
        h = _block(m, layer, h)
    n = Node("norm", OUTER["output_norm"], (h,))
    name = "token_embd.weight" if m.tied else "output.weight"
    return Node("linear", OUTER["output"], (n,), m.file.tensors[name].shape[0], "output.bias" in m.file.tensors)


def _block(m: Meaning, layer: int, h: Node) -> Node:
    def linear(name: str, x: Node) -> Node:
        stem = f"blk.{layer}.{name}"
        tensor = m.file.tensors.get(f"{stem}.weight")
        if tensor is None:
            raise Unreadable(f"{stem}.weight is missing")
        return Node("linear", f"{at}.{MODULES[name]}", (x,), tensor.shape[0], f"{stem}.bias" in m.file.tensors)

    def norm(name: str, x: Node) -> Node:
        return Node("norm", f"{at}.{MODULES[name]}", (x,))

    at, (heads, kv_heads) = f"model.layers.{layer}", m.heads
    n = norm("attn_norm", h)
    q, k, v = (linear(f"attn_{x}", n) for x in "qkv")
    if m.architecture == "qwen3":
        q, k = norm("attn_q_norm", q), norm("attn_k_norm", k)
    a = Node("attention", f"{layer} {heads}/{kv_heads}", (Node("rope", "", (q,)), Node("rope", "", (k,)), v))
    h = Node("add", "", (h, linear("attn_output", a)))
    n = norm("ffn_norm", h)
    gated = Node("mul", "", (Node("silu", "", (linear("ffn_gate", n),)), linear("ffn_up", n)))
    return Node("add", "", (h, linear("ffn_down", gated)))
