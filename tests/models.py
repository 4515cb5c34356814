# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every family, and their folded form: what makes the unit tests fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dlqat import architecture
from dlqat.folded import Folded, Quantized, disk
from dlqat.folded.disk import FoldedModel
from dlqat.grid import Grid, quantize
from dlqat.recipe import Recipe, portable
from dlqat.source import pretrained

SCALED_LOCAL_ROPE: dict[str, Any] = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    }
}
"""A change of gemma3_text that neither llama.cpp nor mlx-lm computes."""
FAMILIES = (
    *("llama", "llama-tied", "llama-biased", "llama3", "mistral", "qwen2", "qwen3"),
    *("ministral", "ministral3", "internlm3", "iquestcoder", "cwm", "smollm3", "granite", "gemma3_text", "olmo2"),
    *("phi3", "phi3-long", "gemma2"),
)

CAPPED = ("gemma2",)
"""Those with soft caps: ExecuTorch has none."""

WINDOWED = ("mistral", "ministral", "cwm", "gemma3_text", "phi3")
"""Those whose window is shorter than a context: ExecuTorch has none."""

_VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biased": {"attention_bias": True, "mlp_bias": True},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "ministral": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "ministral3": {
        "head_dim": 16,
        "pad_token_id": 0,
        "max_position_embeddings": 256,  # 128 of them before queries are scaled by their position
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 8.0,
            "beta_slow": 1.0,
            "attention_factor": 1.25,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "internlm3": {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "iquestcoder": {"head_dim": 16, "mlp_bias": True},
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": 0},
    "olmo2": {"pad_token_id": 0},
    "granite": {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.2,
        "logits_scaling": 3.0,
    },
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "pad_token_id": 0,
    },
    "phi3": {"sliding_window": 8, "pad_token_id": 0},  # Phi-3-mini-4k
    "phi3-long": {  # Phi-4-mini: tied, and a part of each head turns
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 128,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0 + i / 8 for i in range(8)],
            "long_factor": [1.0 + i for i in range(8)],
        },
    },
    "gemma2": {
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
        "pad_token_id": 0,
    },
    "cwm": {"head_dim": 16, "sliding_window": 8, "mlp_bias": True},
}

RELEASED: dict[str, dict[str, Any]] = {
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "gemma2": {"query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    "phi3-long": {"original_max_position_embeddings": 512},
}
"""As the released models have it, where llama.cpp and mlx-lm have it in code and a tiny variant is something else."""


def tiny(family: str = "llama-tied", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model of `family`: 2 layers, hidden 64, grouped-query attention, vocabulary 160."""
    if (model_type := family.partition("-")[0].replace("llama3", "llama")) not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} does not have {model_type}")
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": 160,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **_VARIANTS[family],
            **changes,
        },
    )
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    attention = pretrained._attention(config.to_dict())
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(5)  # initializer_range 0.02 would leave logits flat and tests blind
    torch.set_rng_state(generator_state)
    return model.eval()


def round_to_nearest(weight: torch.Tensor, grid: Grid) -> Quantized:
    """Min-max scales: the least that a test needs of a quantizer."""
    out, inputs = weight.shape
    w = weight.detach().float().reshape(out, grid.groups(inputs), -1)
    if grid.symmetric:
        scales = grid.round_scales(w.abs().amax(-1) / -grid.qmin)
        return Quantized(grid, quantize(weight.detach(), scales, None, grid), scales)
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    scales = grid.round_scales((high - low) / (grid.qmax - grid.qmin))
    zero_points = (grid.qmin - torch.round(low / scales)).clamp(grid.qmin, grid.qmax).to(torch.int8)
    return Quantized(grid, quantize(weight.detach(), scales, zero_points, grid), scales, zero_points)


def fold_model(model: PreTrainedModel, recipe: Recipe | None = None) -> FoldedModel:
    """Round a float model to nearest: linears and embeddings on the recipe's grids, the rest verbatim."""
    state = dict(model.state_dict())
    decoder = architecture.read(model.config.to_dict())
    if decoder.tied:
        state.pop("lm_head.weight", None)
    shapes = {n.removesuffix(".weight"): tuple(t.shape) for n, t in state.items() if t.ndim == 2}
    specs = (recipe or portable()).layers(shapes)  # pyright: ignore[reportArgumentType]
    layers: dict[str, Folded] = {n: round_to_nearest(state.pop(f"{n}.weight"), s.grid) for n, s in specs.items()}
    return FoldedModel(model.config.to_dict(), layers, state, specs)


def write_folded(path: Path, family: str = "llama-tied", recipe: Recipe | None = None, **changes: Any) -> FoldedModel:
    """A tiny folded/ folder at `path` (no tokenizer) and its content."""
    model = fold_model(tiny(family, **changes), recipe)
    disk.write(model, path, files=path.parent)
    return model
