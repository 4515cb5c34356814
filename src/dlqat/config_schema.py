# SPDX-License-Identifier: Apache-2.0
"""What a config.json must say before anything is computed from it: numbers of the right kind and of a possible size.

The sizes are far above every model's; without them a layer count of two million would be built before somebody noticed
that the file has two layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from dlqat import json_file

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 12)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e12)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Rope(msgspec.Struct, frozen=True):
    """rope_parameters, or rope_scaling of older configs."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Positive | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    short_factor: list[Positive] | None = None
    long_factor: list[Positive] | None = None
    partial_rotary_factor: Share | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    llama_4_scaling_beta: float | None = None


class Ropes(msgspec.Struct, frozen=True):
    """rope_parameters of a model with one rope for each type of layer."""

    full_attention: Rope | None = None
    sliding_attention: Rope | None = None


class Facts(msgspec.Struct, frozen=True):
    """The keys that architecture.py reads."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Size
    num_key_value_heads: Count | None = None
    head_dim: Size | None = None
    rms_norm_eps: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    rope_theta: Positive | None = None
    rope_scaling: Rope | None = None
    partial_rotary_factor: Share | None = None
    original_max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    sliding_window: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_window_layers: Annotated[int, msgspec.Meta(ge=0)] | None = None
    layer_types: list[str] | None = None
    no_rope_layers: list[int] | None = None
    embedding_multiplier: Positive | None = None
    residual_multiplier: Positive | None = None
    attention_multiplier: Positive | None = None
    logits_scaling: Positive | None = None
    query_pre_attn_scalar: Positive | None = None
    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None


_SOME = {"hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 1}


def check_given(config: Mapping[str, Any], where: str = "config.json") -> None:
    """The same of a config that leaves numbers to transformers' defaults."""
    check({**_SOME, **{key: value for key, value in config.items() if value is not None}}, where)


def check(config: Mapping[str, Any], where: str = "config.json") -> None:
    """Refusal of a number that is missing, of another kind, or too large for any model."""
    json_file.convert(dict(config), Facts, where)
    ropes = config.get("rope_parameters")
    if ropes is not None:
        nested = isinstance(ropes, Mapping) and any(isinstance(value, Mapping) for value in ropes.values())
        json_file.convert(ropes, Ropes if nested else Rope, f"{where}: rope_parameters")
