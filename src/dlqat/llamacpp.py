# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's forward of each family, as writing and reading a .gguf file both need it: its name, its tensors, what it has
in code (src/models/NAME.cpp) rather than in the file.

The proof reads files by rules of its own (runtime_tests/readers/gguf/rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlqat.architecture import EMBEDDING, HEAD, Decoder


@dataclass(frozen=True, slots=True)
class Architecture:
    """What llama.cpp's forward of one name has."""

    name: str
    interleaved: bool = False
    """Whether it rotates neighbours, where transformers rotates the two halves of a head: rows of q and k change places."""
    rope_factors: bool = False
    """Whether it reads rope_freqs.weight."""
    biases: tuple[str, ...] = ()
    """Linears whose biases it adds."""
    multipliers: bool = False
    """Whether it reads scales of embedding, attention, residuals and logits."""
    windows: bool = False
    """Whether it reads a window, and in which layers it is."""
    caps: bool = False
    """Whether it caps scores of attention and logits, always both."""
    longrope: bool = False
    """Whether it reads rope_factors_short.weight (and _long, where its context is longer than the original one) and a factor of
    cos and sin."""


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_ALL = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")
_LLAMA = Architecture("llama", interleaved=True, rope_factors=True, biases=_ALL)
ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "internlm3", "iquestcoder", "cwm"), _LLAMA),
    "qwen2": Architecture("qwen2", biases=_ATTENTION[:3]),
    "qwen3": Architecture("qwen3", biases=_ATTENTION[:3]),
    "smollm3": Architecture("smollm3", interleaved=True, biases=_ATTENTION[:3]),
    "granite": Architecture("granite", interleaved=True, rope_factors=True, biases=_ALL, multipliers=True),
    "gemma3_text": Architecture("gemma3", windows=True),
    "gemma2": Architecture("gemma2", windows=True, caps=True),
    "olmo2": Architecture("olmo2"),
    "phi3": Architecture("phi3", longrope=True),
}
"""By model_type."""

GEMMA_PERIOD, GEMMA_LOCAL_BASE, GEMMA_LARGE = 6, 10000.0, 62
"""What gemma3 has where the file does not say it: every 6th layer sees all, the base of the others; in the model of 62 layers
queries are scaled by the width of all heads."""
GEMMA2_PERIOD, GEMMA2_LARGE = 2, 46
"""The same of gemma2, whose layers have one rope. Where the file does not say them, its window is 4096 and its caps 50 and 30."""
GEMMA2_DEFAULTS = {"attention.sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
SMOLLM3_PERIOD = 4
"""Every 4th layer of smollm3 has no positions."""
PADDED = 256
"""It makes room for a multiple of so many tokens."""
ROPE_FREQS = "rope_freqs.weight"
ROPE_FACTORS: Mapping[str, str] = {f"{x}_factor": f"rope_factors_{x}.weight" for x in ("short", "long")}
"""LongRoPE's divisors, by their key in rope_parameters."""

OUTER = {EMBEDDING: "token_embd", "model.norm": "output_norm", HEAD: "output"}
_INNER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FUSED = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def inner(facts: Decoder) -> dict[str, str]:
    """Module in a block -> its name in the file."""
    norms = facts.norms
    placed = {
        norms.before_attention: "attn_norm",
        norms.after_attention: "post_attention_norm",
        norms.before_mlp: "ffn_norm",
        norms.after_mlp: "post_ffw_norm",
    }
    return {
        **(_FUSED if facts.fused else _INNER),
        **{module: name for module, name in placed.items() if module is not None},
    }
