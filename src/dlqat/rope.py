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
    """What an artifact calls `what` (cos, sin, frequencies, amplitude) of a rope."""
    return f"rope.{name}.{what}" if name else f"rope.{what}"


def name_of(tensor: str) -> str:
    """The rope that a stored tensor is of."""
    return ".".join(tensor.split(".")[1:-1])


def inverse_frequencies(rope: Rope, size: int) -> NDArray[np.float32]:
    """float32 [n / 2] for heads of `size`, of which the first n turn; rope types default, linear, llama3, yarn and longrope."""
    if (size := turned(rope, size)) % 2:
        raise Refusal(f"{size} numbers of a head would turn by their position, and they turn in pairs")
    exponent = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    inverse = (1.0 / np.float32(rope["rope_theta"]) ** exponent).astype(np.float32)
    match rope["rope_type"]:
        case "default":
            return inverse
        case "linear":
            return (inverse / np.float32(rope["factor"])).astype(np.float32)
        case "llama3":
            return _llama3(inverse, rope)
        case "yarn":
            return _yarn(inverse, rope, size)
        case "longrope":
            return _longrope(rope, size)
        case other:
            raise Refusal(f"rope_type {other!r} is not known; known: default, linear, llama3, yarn, longrope")


def turned(rope: Rope, size: int) -> int:
    """How many numbers of a head of `size` positions turn; the others behind them stay as they are."""
    return int(size * rope.get("partial_rotary_factor", 1.0))


def attention_factor(rope: Rope) -> float:
    """What transformers multiplies cos and sin by, of queries and of keys."""
    if rope["rope_type"] not in ("yarn", "longrope"):
        return 1.0
    if (said := rope.get("attention_factor")) is not None:
        return float(said)
    if rope["rope_type"] == "longrope":
        longer, length = rope["factor"], rope["original_max_position_embeddings"]
        return math.sqrt(1 + math.log(longer) / math.log(length)) if longer > 1 else 1.0

    def of(scale: float) -> float:
        return 0.1 * scale * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    return of(above) / of(below) if above and below else of(1.0)


def longest(rope: Rope) -> float:
    """How many positions it has. LongRoPE has others behind the original length: transformers computes the keys of the whole text
    again there, and a program with a cache would go on with those that it has."""
    return rope["original_max_position_embeddings"] if rope["rope_type"] == "longrope" else math.inf


def _llama3(inverse: NDArray[np.float32], rope: Rope) -> NDArray[np.float32]:
    """Llama 3.1's scaling: long waves divided by factor, short waves kept, a smooth ramp between."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inverse
    smooth = (context / wavelength - low) / (high - low)
    ramp = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(wavelength > context / low, inverse / factor, ramp)
    return np.where(wavelength < context / high, inverse, scaled).astype(np.float32)


def _yarn(inverse: NDArray[np.float32], rope: Rope, size: int) -> NDArray[np.float32]:
    """YaRN (arXiv 2309.00071): pairs that turn more than beta_fast times within the original context are kept, those that turn
    less than beta_slow times divided by factor, a straight ramp over the pairs between."""
    for key in ("factor", "original_max_position_embeddings"):
        if rope.get(key) is None:
            raise Refusal(
                f"rope_type yarn without {key}: transformers would take it from elsewhere; config.json must say it"
            )
    context, base = rope["original_max_position_embeddings"], rope["rope_theta"]

    def pair(turns: float) -> float:
        return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair(rope.get("beta_fast") or 32), pair(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first), 0, 1)
    slow = inverse / np.float32(rope["factor"])
    return (slow * ramp + inverse * (1 - ramp)).astype(np.float32)


def _longrope(rope: Rope, size: int) -> NDArray[np.float32]:
    """LongRoPE (arXiv 2402.13753): a divisor for each pair, here those of texts up to the original length."""
    for key in ("short_factor", "long_factor"):
        if len(rope.get(key) or ()) != size // 2:
            raise Refusal(
                f"rope_type longrope: {key} has {len(rope.get(key) or ())} numbers, and {size // 2} pairs turn"
            )
    if (length := rope["original_max_position_embeddings"]) <= 1:
        raise Refusal(f"rope_type longrope: original_max_position_embeddings is {length}, and must be more than 1")
    divisors = rope["short_factor"]
    wave = np.float32(rope["rope_theta"]) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
    return (1.0 / (np.array(divisors, np.float32) * wave)).astype(np.float32)
