# SPDX-License-Identifier: Apache-2.0
"""A .gguf file as a Hugging Face model: config and parameters under the names that transformers uses.

transformers' own GGUF loader drops without a word what it does not know, Llama 3's rope_freqs and
Qwen3's head size among it. Here every key of the architecture is either read or refused: a forward
that is nearly right is worse than none. Conventions are those of llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from dlqat import architecture, json_file, rope
from dlqat.llamacpp import ARCHITECTURES, OUTER, ROPE_FACTORS, ROPE_FREQS, inner
from dlqat.refusal import Refusal
from dlqat.source import float_model, gguf_file
from dlqat.source.float_model import FloatModel
from dlqat.source.gguf_families import READINGS
from dlqat.source.gguf_file import Gguf
from dlqat.source.sidecar import DIGITS

_FIELDS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
}
_READ = {
    *_FIELDS,
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "vocab_size",
}
_HARMLESS = {"tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}

# How llama.cpp's converter names the text splitting that transformers, or sidecar.py, rebuilds right from a GGUF.
_LLAMA3 = {"llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"}  # the last two: OLMo 2 and SmolLM3
_SPLITTERS = {None, "default", "gpt-2", *_LLAMA3, "qwen2", "tekken", *DIGITS}


_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Factor = Annotated[float, msgspec.Meta(ge=0, lt=1e12)]
_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e12)]


class Metadata(msgspec.Struct, frozen=True):
    """The kinds of what is read."""

    width: _Count | None = msgspec.field(default=None, name="embedding_length")
    wide: _Count | None = msgspec.field(default=None, name="feed_forward_length")
    blocks: _Count | None = msgspec.field(default=None, name="block_count")
    heads: _Count | None = msgspec.field(default=None, name="attention.head_count")
    kv_heads: _Count | None = msgspec.field(default=None, name="attention.head_count_kv")
    key: _Count | None = msgspec.field(default=None, name="attention.key_length")
    window: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] | None = msgspec.field(
        default=None, name="attention.sliding_window"
    )
    scale: _Factor | None = msgspec.field(default=None, name="attention.scale")
    embedding: _Factor | None = msgspec.field(default=None, name="embedding_scale")
    residual: _Factor | None = msgspec.field(default=None, name="residual_scale")
    logits: _Factor | None = msgspec.field(default=None, name="logit_scale")
    attention_cap: _Positive | None = msgspec.field(default=None, name="attn_logit_softcapping")
    logits_cap: _Positive | None = msgspec.field(default=None, name="final_logit_softcapping")
    local_base: _Positive | None = msgspec.field(default=None, name="rope.freq_base_swa")
    base: _Positive | None = msgspec.field(default=None, name="rope.freq_base")
    scaling: str | None = msgspec.field(default=None, name="rope.scaling.type")
    factor: _Positive | None = msgspec.field(default=None, name="rope.scaling.factor")
    amplitude: _Positive | None = msgspec.field(default=None, name="rope.scaling.attn_factor")
    original: _Count | None = msgspec.field(default=None, name="rope.scaling.original_context_length")
    turned: _Count | None = msgspec.field(default=None, name="rope.dimension_count")
    splitter: str | None = msgspec.field(default=None, name="tokenizer.ggml.pre")


def open_file(path: Path) -> FloatModel:
    """The model of a .gguf file, in float32."""
    file = gguf_file.read(path)
    complete = float_model.complete(config(file), torch.float32)
    decoder = architecture.read(complete)
    shapes = {name: file.table[stored].shape for name, stored in names(file, decoder).items()}
    return FloatModel(complete, shapes, torch.float32, parameter(file, decoder), (path,))


def config(file: Gguf) -> dict[str, Any]:
    """The config.json that the file's metadata amounts to. Refusal for what transformers cannot express."""
    arch = str(file.metadata.get("general.architecture"))
    if arch not in READINGS:
        known = ", ".join(READINGS)
        raise Refusal(f"{file.path}: GGUF architecture {arch!r} is not known; known: {known}")
    parts = file.metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise Refusal(f"{file.path} is one of {parts} parts; join them with llama.cpp's llama-gguf-split --merge")
    found = {k.removeprefix(f"{arch}."): v for k, v in file.metadata.items() if k.startswith(f"{arch}.")}
    json_file.convert({**file.metadata, **found}, Metadata, f"{file.path} is damaged: its metadata")
    reading = READINGS[arch]
    unknown = sorted(k for k, v in found.items() if k not in _READ | _HARMLESS | reading.keys and v)
    if unknown:
        raise Refusal(
            f"{file.path}: cannot read {arch}.{unknown[0]} = {found[unknown[0]]!r}; use the HF folder instead"
        )
    if (splitter := file.metadata.get("tokenizer.ggml.pre")) not in _SPLITTERS:
        raise Refusal(f"{file.path}: tokenizer.ggml.pre = {splitter!r} is not known; use the HF folder instead")
    if lacking := [key for key in (*_FIELDS, *reading.needed) if key not in found]:
        raise Refusal(f"{file.path}: the metadata lacks {arch}.{lacking[0]}")
    fields: dict[str, Any] = {hf: found[key] for key, hf in _FIELDS.items()}
    heads = fields["num_attention_heads"]
    head_dim = found.get("attention.key_length", fields["hidden_size"] // heads)
    for key in ("attention.value_length", *([] if reading.partial else ["rope.dimension_count"])):
        if found.get(key, head_dim) != head_dim:
            raise Refusal(f"{file.path}: {arch}.{key} = {found[key]} differs from the head size {head_dim}")
    base = {
        **fields,
        "model_type": arch,
        "num_key_value_heads": found.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": next(iter(_shape(file, "token_embd.weight")), 0),
        "tie_word_embeddings": "output.weight" not in file.table,
        "attention_bias": "blk.0.attn_output.bias" in file.table,
        "mlp_bias": "blk.0.ffn_down.bias" in file.table,
        **_special(file),
    }
    base["rope_parameters"] = _rope(file, found, head_dim)
    return reading.config(found, base)


def _special(file: Gguf) -> dict[str, Any]:
    """Token ids. llama.cpp stops at the end of the text, of a turn and of a message."""
    ids = {kind: file.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "padding", *_ENDS)}
    ends = list(dict.fromkeys(ids[kind] for kind in _ENDS if ids[kind] is not None))
    eos = ends if len(ends) > 1 else next(iter(ends), None)
    return {"bos_token_id": ids["bos"], "eos_token_id": eos, "pad_token_id": ids["padding"]}


_ENDS = ("eos", "eot", "eom")


def names(file: Gguf, decoder: architecture.Decoder) -> dict[str, str]:
    """transformers' parameter name -> the file's tensor name."""
    result: dict[str, str] = {}
    outer = {name: module for module, name in OUTER.items()}
    modules = {name: module for module, name in inner(decoder).items()}
    arch = ARCHITECTURES[decoder.family]
    ropes = {*([ROPE_FREQS] if arch.rope_factors else []), *(ROPE_FACTORS.values() if arch.longrope else [])}
    for name in file.table:
        stem, _, suffix = name.rpartition(".")
        block = stem.split(".")
        if stem in outer:
            result[f"{outer[stem]}.{suffix}"] = name
        elif len(block) == 3 and block[0] == "blk" and block[2] in modules:
            result[f"model.layers.{block[1]}.{modules[block[2]]}.{suffix}"] = name
        elif name not in ropes:  # those are in the config
            raise Refusal(f"{file.path}: tensor {name} is not known; use the HF folder instead")
    return result


def parameter(file: Gguf, decoder: architecture.Decoder) -> Callable[[str], Tensor]:
    """A function from transformers' parameter name to its float32 values."""
    table, interleaved = names(file, decoder), ARCHITECTURES[decoder.family].interleaved

    def load(name: str) -> Tensor:
        value = file.tensor(table[name])
        if decoder.norm_offset and name.endswith("norm.weight"):
            return value - decoder.norm_offset
        heads = {"q_proj": decoder.heads, "k_proj": decoder.kv_heads}.get(name.split(".")[-2])
        return _rows(value, heads) if heads is not None and interleaved else value

    return load


def _rows(value: Tensor, heads: int) -> Tensor:
    """Rows of q and k from ggml's order (pairs rotated side by side) to transformers' (halves)."""
    return value.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(value.shape).contiguous()


def _shape(file: Gguf, name: str) -> tuple[int, ...]:
    if name not in file.table:
        raise Refusal(f"{file.path}: tensor {name} is missing")
    return file.table[name].shape


def _rope(file: Gguf, found: dict[str, Any], head_dim: int) -> dict[str, Any]:
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": float(found.get("rope.freq_base", 10000.0))}
    if ROPE_FREQS in file.table:
        return _llama3(file, plain, head_dim)
    if (turned := found.get("rope.dimension_count", head_dim)) != head_dim:
        plain["partial_rotary_factor"] = turned / head_dim
    if ROPE_FACTORS["short_factor"] in file.table:
        return _longrope(file, plain, found)
    match found.get("rope.scaling.type", "none"):
        case "none":
            return plain
        case "linear":
            return {**plain, "rope_type": "linear", "factor": float(found.get("rope.scaling.factor", 1.0))}
        case other:
            raise Refusal(f"{file.path}: rope scaling {other!r} is not known; use the HF folder instead")


def _longrope(file: Gguf, plain: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The factor of cos and sin stands in the file; without it there is none. Where it is what transformers makes of the lengths,
    the config need not say it."""
    factors = {key: [float(x) for x in file.tensor(name)] for key, name in ROPE_FACTORS.items() if name in file.table}
    longest = found["context_length"]
    original = found.get("rope.scaling.original_context_length", longest)
    own = {**plain, "rope_type": "longrope", **factors, "original_max_position_embeddings": original}
    said = float(found.get("rope.scaling.attn_factor", 1.0))
    same = math.isclose(rope.attention_factor({**own, "factor": longest / original}), said, rel_tol=1e-6)
    return own if same else {**own, "attention_factor": said}


def _llama3(file: Gguf, plain: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Llama 3.1's scaling, which GGUF keeps only as the divisor of every frequency.

    The one number in which the released models differ is the factor (8 in 3.1, 32 in 3.2), and that is
    the largest divisor. Whether it explains all the divisors is checked, so a wrong guess is refused."""
    divisors = file.tensor(ROPE_FREQS).numpy()
    guess = {
        **plain,
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    own, scaled = (rope.inverse_frequencies(one, head_dim) for one in (plain, guess))
    if own.shape != divisors.shape or not np.allclose(own / scaled, divisors, rtol=1e-5, atol=0):
        raise Refusal(f"{file.path}: rope_freqs.weight is not Llama 3's scaling; use the HF folder instead")
    return guess
