# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: how fast each pair of a head turns, as transformers' modeling_rope_utils computes it.

A model has one rope, or one for each type of layer. Each has a name ("" where there is one), and the names of what artifacts
store of it follow from that: rope.cos, rope.sin, rope.frequencies, or rope.NAME.cos and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.refusal import Refusal

Rope = Mapping[str, Any]
"""rope_parameters of a config: rope_type, rope_theta and the type's own."""


def stored(name: str, what: str) -> str:
    """What an artifact calls `what` (cos, sin, frequencies) of a rope."""
    return f"rope.{name}.{what}" if name else f"rope.{what}"


def name_of(tensor: str) -> str:
    """The rope that a stored tensor is of."""
    return ".".join(tensor.split(".")[1:-1])


def inverse_frequencies(rope: Rope, size: int) -> NDArray[np.float32]:
    """float32 [size / 2] for heads of `size`; rope types default, linear and llama3."""
    exponent = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    inverse = (1.0 / np.float32(rope["rope_theta"]) ** exponent).astype(np.float32)
    match rope["rope_type"]:
        case "default":
            return inverse
        case "linear":
            return (inverse / np.float32(rope["factor"])).astype(np.float32)
        case "llama3":
            return _llama3(inverse, rope)
        case other:
            raise Refusal(f"rope_type {other!r} is not known; known: default, linear, llama3")


def _llama3(inverse: NDArray[np.float32], rope: Rope) -> NDArray[np.float32]:
    """Llama 3.1's scaling: long waves divided by factor, short waves kept, a smooth ramp between."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inverse
    smooth = (context / wavelength - low) / (high - low)
    ramp = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(wavelength > context / low, inverse / factor, ramp)
    return np.where(wavelength < context / high, inverse, scaled).astype(np.float32)
