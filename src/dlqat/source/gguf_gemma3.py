# SPDX-License-Identifier: Apache-2.0
"""What a .gguf file of the gemma3 architecture means beyond its metadata: llama.cpp has it in code (llama-model.cpp).

every 6th layer sees all, the others a window; those turn by a base of 10,000, without the file's rope scaling
queries are scaled by head_dim ** -0.5; in the model of 62 layers by (hidden_size / heads) ** -0.5
gains are stored as 1 + w
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL_TYPE = "gemma3_text"
READ = {"attention.sliding_window"}
"""Keys of the metadata besides those of all architectures."""
MODULES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Tensors that have another name than Llama's, or that Llama has not."""
PATTERN, LARGE, LOCAL_BASE = 6, 62, 10000.0


def config(found: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json: `base`, what all architectures have, and what this one adds. `found`: the file's own keys."""
    layers, heads = base["num_hidden_layers"], base["num_attention_heads"]
    kinds = ["full_attention" if (i + 1) % PATTERN == 0 else "sliding_attention" for i in range(layers)]
    local = {"rope_type": "default", "rope_theta": LOCAL_BASE}
    plain = {key: value for key, value in base.items() if key != "mlp_bias"}
    return {
        **plain,
        "model_type": MODEL_TYPE,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": kinds,
        "sliding_window": found["attention.sliding_window"],
        "query_pre_attn_scalar": base["hidden_size"] // heads if layers == LARGE else base["head_dim"],
        "rope_parameters": {"full_attention": base["rope_parameters"], "sliding_attention": local},
    }
