# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp's forwards of the architectures differ in (src/models/NAME.cpp), as far as no key of the file says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
"""Before and behind attention, before and behind the MLP."""
_PRE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_SANDWICH: Mapping[str, str] = dict(
    zip(
        NORMS,
        (f"{x}_layernorm" for x in ("input", "post_attention", "pre_feedforward", "post_feedforward")),
        strict=True,
    )
)
_POST: Mapping[str, str] = {name: _SANDWICH[name] for name in (NORMS[1], NORMS[3])}


class Gemma3(NamedTuple):
    """Numbers that gemma3 has where the file is silent."""

    period: int = 6
    """Every so many layers one sees all."""
    local_base: float = 10000.0
    large: int = 62


GEMMA3 = Gemma3()


@dataclass(frozen=True, slots=True)
class Rules:
    """One architecture."""

    interleaved: bool = False
    """Whether rotary positions turn neighbours rather than the halves of a head."""
    rope_factors: bool = False
    """Whether rope_freqs.weight is read."""
    biases: frozenset[str] = frozenset()
    """Linears whose biases are added."""
    fused: bool = False
    """Whether q, k and v are one tensor, gate and up another."""
    longrope: bool = False
    """Whether rope_factors_short.weight is read, _long where the context is longer than the original one, and attn_factor."""
    norms: Mapping[str, str] = field(default_factory=lambda: _PRE)
    """Tensor -> module, of those of the hidden state that it has."""
    qk_norm: bool = False
    activation: Literal["silu", "gelu"] = "silu"
    root: bool = False
    """Whether the embedding is multiplied by the root of its width."""
    multipliers: bool = False
    caps: bool = False
    """Whether scores and logits are capped."""
    windows: bool = False
    period: int = GEMMA3.period
    """Every so many layers one sees all, where the file is silent."""
    large: int = GEMMA3.large
    """With so many layers queries of a model with windows are scaled by (hidden size / heads) ** -0.5."""
    local_rope: bool = True
    """Whether layers with windows have a rope of their own."""
    unturned: int | None = None
    """Every so many layers one has no positions."""
    needed: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    """Keys besides those of all architectures: without the first it does not load."""

    @property
    def modules(self) -> dict[str, str]:
        """Tensor of a block -> transformers' module."""
        return {**(FUSED if self.fused else LINEARS), **self.norms, **(QK_NORMS if self.qk_norm else {})}


_QKV = frozenset(("attn_q", "attn_k", "attn_v"))
RULES = {
    "llama": Rules(interleaved=True, rope_factors=True, biases=frozenset(LINEARS)),
    "qwen2": Rules(biases=_QKV),
    "qwen3": Rules(biases=_QKV, qk_norm=True),
    "smollm3": Rules(interleaved=True, biases=_QKV, unturned=4),
    "granite": Rules(
        interleaved=True,
        rope_factors=True,
        biases=frozenset(LINEARS),
        multipliers=True,
        needed=frozenset(("logit_scale",)),
        read=frozenset(("embedding_scale", "residual_scale", "attention.scale")),
    ),
    "gemma3": Rules(
        norms=_SANDWICH,
        qk_norm=True,
        activation="gelu",
        root=True,
        windows=True,
        needed=frozenset(("attention.sliding_window",)),
        read=frozenset(("attention.sliding_window_pattern", "rope.freq_base_swa")),
    ),
    "olmo2": Rules(norms=_POST, qk_norm=True),
    "gemma2": Rules(
        norms=_SANDWICH,
        activation="gelu",
        root=True,
        caps=True,
        windows=True,
        period=2,
        large=46,
        local_rope=False,
        needed=frozenset(("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")),
    ),
    "phi3": Rules(
        fused=True,
        longrope=True,
        read=frozenset(("rope.scaling.original_context_length", "rope.scaling.attn_factor")),
    ),
}
