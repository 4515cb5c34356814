# SPDX-License-Identifier: Apache-2.0
"""The facts of a decoder as llama.cpp's metadata, and what its forward of that name cannot express."""

from __future__ import annotations

import numpy as np
from torch import Tensor, from_numpy

from dlqat.architecture import Decoder
from dlqat.exporters.gguf.names import architecture
from dlqat.refusal import Refusal

Value = bool | int | float | str
ROPE_FREQS = "rope_freqs.weight"


def refuse(facts: Decoder, context: int) -> None:
    """Refusal for what llama.cpp would leave out without a word."""
    arch = architecture(facts)
    window = _window(facts)
    if window is not None and context > window:
        raise Refusal(
            f"attention windows of {window}: llama.cpp's {arch} sees the whole text; up to {window} tokens that is the same: "
            f"--max-context {window}"
        )
    if facts.ropes[""]["rope_type"] == "llama3" and arch != "llama":
        raise Refusal(f"rope_type llama3: llama.cpp reads its factors for llama only, not for {arch}")


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
        "rope.dimension_count": facts.head_dim,
        "rope.freq_base": float(facts.ropes[""]["rope_theta"]),
    }
    if facts.ropes[""]["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(facts.ropes[""]["factor"])}
    return found


def rope_freqs(facts: Decoder) -> Tensor | None:
    """Llama 3's scaling as llama.cpp has it: the divisor of every frequency."""
    if facts.ropes[""]["rope_type"] != "llama3":
        return None
    dim = facts.head_dim
    plain = 1.0 / float(facts.ropes[""]["rope_theta"]) ** (np.arange(0, dim, 2) / dim)
    return from_numpy((plain / facts.inverse_frequencies().astype(np.float64)).astype(np.float32))


def _window(facts: Decoder) -> int | None:
    return min((w for w in facts.windows if w is not None and w < facts.max_positions), default=None)
