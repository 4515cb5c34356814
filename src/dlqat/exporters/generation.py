# SPDX-License-Identifier: Apache-2.0
"""generation_config.json in other clients than transformers: what each of them does with a setting.

A setting that a client does not know changes the text that users get, and nobody is told. So each is carried into the
client's own config, or named when the artifact is written (manifest.json, "clients").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GENAI = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size", "min_length")
"""What the "search" part of genai_config.json takes under the same name and meaning (run with 0.18)."""
HEARD = {
    "onnxruntime-genai": frozenset(GENAI),
    "transformers.js": frozenset(  # modeling_utils.js and logits_sampler.js of 4.3.1; top_p stands there as a comment
        (
            *("do_sample", "temperature", "top_k", "repetition_penalty", "no_repeat_ngram_size", "min_length"),
            *("min_new_tokens", "max_new_tokens", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
            *("forced_bos_token_id", "forced_eos_token_id", "guidance_scale"),
        )
    ),
    "TextLLMRunner": frozenset[str](),  # the app gives temperature and lengths with each call
    "react-native-executorch": frozenset[str](),
    "swift-transformers": frozenset[str](),
    "llama.cpp": frozenset[str](),
    "mlx-lm": frozenset[str](),
}
"""Client -> the settings that it honours as its loader finds them."""
ELSEWHERE = frozenset(
    (
        *("eos_token_id", "bos_token_id", "pad_token_id", "max_length", "transformers_version", "_from_model_config"),
        *("use_cache", "cache_implementation", "return_dict_in_generate", "output_scores", "output_attentions"),
        *("output_hidden_states", "output_logits", "decoder_start_token_id", "trust_remote_code"),
    )
)
"""Ids (tokens.py), the context, and what does not change a text."""
ONE = frozenset(
    (
        *("temperature", "top_p", "typical_p", "repetition_penalty", "encoder_repetition_penalty", "length_penalty"),
        *("guidance_scale", "num_beams", "num_beam_groups", "num_return_sequences"),
    )
)
"""Settings that do nothing at 1; all others do nothing at null, 0, false or an empty list."""


def effective(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change a text."""
    return {k: v for k, v in generation.items() if k not in ELSEWHERE and v and not (k in ONE and v == 1)}


def unheard(client: str, generation: Mapping[str, Any]) -> str | None:
    """The effective settings that `client` does not honour, in words; None if there are none."""
    lost = {k: v for k, v in effective(generation).items() if k not in HEARD[client]}
    if not lost:
        return None
    return f"does not take from generation_config.json: {', '.join(f'{k} {_short(v)}' for k, v in lost.items())}"


def state(client: str, generation: Mapping[str, Any], *remarks: str | None) -> str:
    """What manifest.json says of a client that was set up, before anybody has asked it (asked.py)."""
    return "; ".join(("ready", *(r for r in (unheard(client, generation), *remarks) if r)))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
