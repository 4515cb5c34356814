# SPDX-License-Identifier: Apache-2.0
"""config.json as mlx-lm's models read it (mlx_lm/models/NAME.py), and what they would leave out, add or have in code."""

from __future__ import annotations

from typing import Any

import torch

from dlqat.architecture import Decoder
from dlqat.folded.disk import FoldedModel
from dlqat.refusal import Refusal

FAMILIES = ("llama", "mistral", "iquestcoder", "qwen2", "qwen3", "smollm3", "granite", "gemma3_text", "olmo2", "phi3")


def refuse(facts: Decoder, model: FoldedModel) -> None:
    """Refusal for what mlx-lm's model of that name computes otherwise."""
    if facts.family not in FAMILIES:
        raise Refusal(f"target mlx does not know {facts.family} yet; known: {', '.join(FAMILIES)}")
    if any(rope["rope_type"] == "yarn" for rope in facts.ropes.values()):
        raise Refusal("rope_type yarn: target mlx does not write it yet")
    if any(rope["rope_type"] == "longrope" for rope in facts.ropes.values()):
        raise Refusal(
            "rope_type longrope: mlx-lm turns every text by the long factors, config.json means the short ones up to "
            f"{facts.max_positions} tokens; target gguf has both"
        )
    if facts.family == "gemma3_text":
        _refuse_gemma3(facts)
    elif any(w is not None and w < facts.max_positions for w in facts.windows):
        raise Refusal(f"attention windows: mlx-lm's {facts.family} sees the whole text")
    if facts.family in ("qwen2", "granite", "phi3") and facts.head_dim * facts.heads != facts.hidden_size:
        raise Refusal(f"heads of {facts.head_dim}: mlx-lm's {facts.family} takes hidden_size / heads")
    if facts.family in ("qwen3", "gemma3_text") and facts.qkv_bias:
        raise Refusal(f"attention_bias: mlx-lm's {facts.family} has no biases")
    if "lm_head.bias" in model.tensors:
        raise Refusal("lm_head.bias: mlx-lm's heads have no bias")


def keys(facts: Decoder) -> dict[str, Any]:
    """What config.json must say besides folded/'s."""
    if facts.family == "gemma3_text":
        own = {"sliding_window_pattern": period(facts), "rope_theta": facts.ropes["full_attention"]["rope_theta"]}
        if "sliding_attention" in facts.ropes:
            own["rope_local_base_freq"] = facts.ropes["sliding_attention"]["rope_theta"]
        scaled = facts.ropes["full_attention"]["rope_type"] != "default"
        return {**own, **({"rope_scaling": dict(facts.ropes["full_attention"])} if scaled else {})}
    return {}


def period(facts: Decoder) -> int | None:
    """N, where every Nth layer sees all and the others have windows; None where no N says it."""
    sliding = [name == "sliding_attention" for name in facts.rotary]
    periods = range(1, facts.layers + 1)
    return next((n for n in periods if sliding == [bool((i + 1) % n) for i in range(facts.layers)]), None)


def _refuse_gemma3(facts: Decoder) -> None:
    root = facts.hidden_size**0.5
    rounded = float(torch.tensor(root).bfloat16())
    if rounded != root:
        raise Refusal(
            f"hidden_size {facts.hidden_size}: mlx-lm's gemma3_text multiplies the embedding by {rounded:g}, the bfloat16 "
            f"number next to its root, config.json means {root:.6g}; target gguf has the root"
        )
    if period(facts) is None:
        raise Refusal(
            "layer_types: mlx-lm's gemma3_text has full attention in every Nth layer, and windows in all others"
        )
    local = facts.ropes.get("sliding_attention", {"rope_type": "default"})["rope_type"]
    if local != "default":
        raise Refusal(
            f"rope_type {local} of sliding_attention: mlx-lm's gemma3_text does not scale the layers with windows"
        )
