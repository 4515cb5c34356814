# SPDX-License-Identifier: Apache-2.0
"""The facts of a decoder as llama.cpp's metadata, and what its forward of that name cannot express."""

from __future__ import annotations

import numpy as np
from torch import Tensor, float32, from_numpy, tensor

from dlqat import rope
from dlqat.architecture import Decoder
from dlqat.exporters.gguf.names import architecture
from dlqat.llamacpp import (
    ARCHITECTURES,
    GEMMA2_LARGE,
    GEMMA2_PERIOD,
    GEMMA_LARGE,
    GEMMA_LOCAL_BASE,
    GEMMA_PERIOD,
    PADDED,
    ROPE_FACTORS,
    ROPE_FREQS,
    SMOLLM3_PERIOD,
)
from dlqat.refusal import Refusal
from dlqat.rope import Rope

Value = bool | int | float | str


def refuse(facts: Decoder, context: int) -> None:
    """Refusal for what llama.cpp would leave out without a word, or has otherwise in its code."""
    arch = architecture(facts)
    window = _window(facts)
    if window is not None and context > window:
        raise Refusal(
            f"attention windows of {window}: llama.cpp's {arch.name} sees the whole text; up to {window} tokens that is the "
            f"same: --max-context {window}"
        )
    kinds = {own["rope_type"] for own in facts.ropes.values()}
    if "llama3" in kinds and not arch.rope_factors:
        readers = ", ".join(sorted({a.name for a in ARCHITECTURES.values() if a.rope_factors}))
        raise Refusal(f"rope_type llama3: llama.cpp reads its factors for {readers} only, not for {arch.name}")
    if "yarn" in kinds:
        raise Refusal("rope_type yarn: target gguf does not write it yet")
    if "longrope" in kinds and not arch.longrope:
        raise Refusal(f"rope_type longrope: target gguf writes it for phi3 only, not for {arch.name}")
    biased = {"q_proj": facts.qkv_bias, "o_proj": facts.output_bias, "down_proj": facts.mlp_bias}
    if odd := [name for name, has in biased.items() if has and name not in arch.biases]:
        raise Refusal(f"biases of {odd[0]}: llama.cpp's {arch.name} does not add them")
    match arch.name:
        case "smollm3":
            _refuse_smollm3(facts)
        case "gemma3":
            _refuse_gemma3(facts)
        case "gemma2":
            _refuse_gemma2(facts)
        case "olmo2":
            _refuse_olmo2(facts)
        case "phi3":
            _refuse_phi3(facts)
        case _:
            pass


def _refuse_smollm3(facts: Decoder) -> None:
    turned = tuple(bool((i + 1) % SMOLLM3_PERIOD) for i in range(facts.layers))
    if tuple(name is not None for name in facts.rotary) != turned:
        raise Refusal(
            f"no_rope_layers: llama.cpp's smollm3 leaves positions out in every {SMOLLM3_PERIOD}th layer, and in no other"
        )


def _refuse_gemma3(facts: Decoder) -> None:
    if _period(facts) is None:
        raise Refusal(
            "layer_types: llama.cpp's gemma3 has full attention in every Nth layer, and windows in all others"
        )
    local = facts.ropes["sliding_attention"]["rope_type"]
    if local != "default":
        raise Refusal(
            f"rope_type {local} of sliding_attention: llama.cpp's gemma3 does not scale the layers with windows"
        )
    _refuse_scale(facts, GEMMA_LARGE)


def _refuse_scale(facts: Decoder, large: int) -> None:
    width = facts.hidden_size // facts.heads if facts.layers == large else facts.head_dim
    if abs(facts.attention_scale - width**-0.5) > 1e-6 * width**-0.5:
        raise Refusal(
            f"query_pre_attn_scalar: llama.cpp's {architecture(facts).name} of {facts.layers} layers has {width}, config.json "
            f"means {facts.attention_scale**-2:g}"
        )


def _refuse_gemma2(facts: Decoder) -> None:
    _refuse_scale(facts, GEMMA2_LARGE)
    if not facts.tied:
        raise Refusal("tie_word_embeddings: llama.cpp's gemma2 multiplies with the embedding, and has no other head")
    if _period(facts) != GEMMA2_PERIOD:
        raise Refusal(
            "layer_types: llama.cpp's gemma2 has full attention in every 2nd layer, and windows in all others"
        )
    if None in (facts.attention_cap, facts.logits_cap):
        raise Refusal("soft caps: llama.cpp's gemma2 caps attention and logits, and config.json does not say both")


def _refuse_phi3(facts: Decoder) -> None:
    _refuse_width(facts)
    for own in facts.ropes.values():
        if own["rope_type"] == "longrope" and own["original_max_position_embeddings"] % PADDED:
            raise Refusal(
                f"rope_type longrope: llama.cpp makes room for a multiple of {PADDED}, so with {facts.max_positions} tokens, the "
                "original length, it would take the long factors for every text"
            )


def _refuse_olmo2(facts: Decoder) -> None:
    if facts.tied:
        raise Refusal("tie_word_embeddings: llama.cpp's olmo2 needs a head of its own")
    _refuse_width(facts)


def _refuse_width(facts: Decoder) -> None:
    if facts.head_dim * facts.heads != facts.hidden_size:
        raise Refusal(f"heads of {facts.head_dim}: llama.cpp's {facts.family} takes hidden_size / heads")


def context_length(facts: Decoder, context: int) -> int:
    """The model's own, for nothing is reserved for it; where windows stand behind it, the one that was asked for."""
    return facts.max_positions if _window(facts) is None else context


def keys(facts: Decoder, context: int) -> dict[str, Value]:
    """Metadata without the architecture's prefix."""
    found: dict[str, Value] = {
        "vocab_size": facts.vocab_size,
        "context_length": context_length(facts, context),
        "embedding_length": facts.hidden_size,
        "block_count": facts.layers,
        "feed_forward_length": facts.intermediate_size,
        "attention.head_count": facts.heads,
        "attention.head_count_kv": facts.kv_heads,
        "attention.key_length": facts.head_dim,
        "attention.value_length": facts.head_dim,
        "attention.layer_norm_rms_epsilon": facts.norm_eps,
        "rope.dimension_count": rope.turned(_rope(facts), facts.head_dim),
        "rope.freq_base": float(_rope(facts)["rope_theta"]),
    }
    if _rope(facts)["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(_rope(facts)["factor"])}
    if _rope(facts)["rope_type"] == "longrope":
        found |= {
            "rope.scaling.original_context_length": int(_rope(facts)["original_max_position_embeddings"]),
            "rope.scaling.attn_factor": rope.attention_factor(_rope(facts)),
        }
    arch = architecture(facts)
    if arch.caps and facts.attention_cap is not None and facts.logits_cap is not None:
        found |= {"attn_logit_softcapping": facts.attention_cap, "final_logit_softcapping": facts.logits_cap}
    return found | (_multipliers(facts) if arch.multipliers else {}) | (_windows(facts) if arch.windows else {})


def _multipliers(facts: Decoder) -> dict[str, Value]:
    return {
        "embedding_scale": facts.embedding_scale,
        "residual_scale": facts.residual_scale,
        "attention.scale": facts.attention_scale,
        "logit_scale": 1 / facts.logits_scale,
    }


def _windows(facts: Decoder) -> dict[str, Value]:
    """The last two only where llama.cpp has another number without them, for versions that do not read them."""
    window: dict[str, Value] = {"attention.sliding_window": next(w for w in facts.windows if w is not None)}
    if (local := facts.ropes.get("sliding_attention")) is None:  # gemma2
        return window
    period, base = _period(facts), float(local["rope_theta"])
    assert period is not None  # refuse
    return {
        **window,
        **({} if period == GEMMA_PERIOD else {"attention.sliding_window_pattern": period}),
        **({} if base == GEMMA_LOCAL_BASE else {"rope.freq_base_swa": base}),
    }


def _period(facts: Decoder) -> int | None:
    """N, where every Nth layer sees all and the others have windows; None where no N says it.

    Without a layer of each kind llama.cpp aborts, or has no windows."""
    sliding = [w is not None for w in facts.windows]
    periods = range(2, facts.layers + 1)
    return next((n for n in periods if sliding == [bool((i + 1) % n) for i in range(facts.layers)]), None)


def _rope(facts: Decoder) -> Rope:
    """That of all layers, or of those that see all."""
    return next(facts.ropes[name] for name in ("", "full_attention") if name in facts.ropes)


def rope_tensors(facts: Decoder) -> dict[str, Tensor]:
    """The scaling of Llama 3 and LongRoPE as llama.cpp has it: the divisor of every frequency, by the tensor's name."""
    own, dim = _rope(facts), facts.head_dim
    if own["rope_type"] == "longrope":
        return {name: tensor(own[key], dtype=float32) for key, name in ROPE_FACTORS.items()}
    if own["rope_type"] != "llama3":
        return {}
    plain = 1.0 / float(own["rope_theta"]) ** (np.arange(0, dim, 2) / dim)
    return {ROPE_FREQS: from_numpy((plain / facts.inverse_frequencies().astype(np.float64)).astype(np.float32))}


def _window(facts: Decoder) -> int | None:
    """The shortest window that the architecture leaves out."""
    if architecture(facts).windows:
        return None
    return min((w for w in facts.windows if w is not None and w < facts.max_positions), default=None)
