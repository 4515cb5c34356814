# SPDX-License-Identifier: Apache-2.0
"""One tensor of a .gguf file as a file of its own: a model whose block adds nothing, for llama.cpp runs no single product.

    logits = W rms_norm(x)      W the tensor's own bytes as output.weight, x a row of token_embd (float32)

The block's output projections are zeros. The norm has an epsilon of 2^60 and a gain of 2^30, so it is
x / sqrt(mean(x^2) + 2^60) * 2^30 = x, bit for bit, for every x that a linear gets. token_embd lies last, and the device
writes the rows to multiply there. For a lookup W is token_embd, and output.weight the identity: the logits are the row.
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray

INPUT = "x"
_SMALL = 32
"""Width of a head and of the MLP."""
_ALIGN = 32


def program(kind: int, content: NDArray[np.uint8], shape: tuple[int, ...], use: Literal["matmul", "gather"]) -> bytes:
    """The file; `content`: the bytes of a tensor of ggml type `kind` and shape [out, inputs]."""
    out, inputs = shape
    rows = np.zeros((out, inputs), np.float32)
    if use == "gather":
        np.fill_diagonal(rows, 1)
    floats = (0, rows.view(np.uint8).reshape(-1), (out, inputs))
    own = (kind, content.reshape(-1), (out, inputs))
    outer = {"output.weight": own, "token_embd.weight": floats}
    if use == "gather":
        outer = {"output.weight": floats, "token_embd.weight": own}
    keys = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "none",
        "llama.vocab_size": out,
        "llama.context_length": 512,
        "llama.embedding_length": inputs,
        "llama.block_count": 1,
        "llama.feed_forward_length": _SMALL,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": _SMALL,
        "llama.attention.value_length": _SMALL,
        "llama.rope.dimension_count": _SMALL,
        "llama.attention.layer_norm_rms_epsilon": 2.0**60,
    }
    return _file(keys, {**_block(inputs), **outer})


Stored = tuple[int, NDArray[np.uint8], tuple[int, ...]]


def _block(inputs: int) -> dict[str, Stored]:
    def filled(value: float, *shape: int) -> Stored:
        return 0, np.full(shape, value, np.float32).view(np.uint8).reshape(-1), shape

    down = dict.fromkeys(("attn_output", "ffn_down"), filled(0, inputs, _SMALL))
    up = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"), filled(0, _SMALL, inputs))
    norms = dict.fromkeys(("attn_norm", "ffn_norm"), filled(1, inputs))
    inner = {f"blk.0.{name}.weight": stored for name, stored in {**norms, **up, **down}.items()}
    return {**inner, "output_norm.weight": filled(2.0**30, inputs)}


def _file(keys: dict[str, str | int | float], tensors: dict[str, Stored]) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    head += b"".join(_text(key) + _value(value) for key, value in keys.items())
    at, body = 0, list[bytes]()
    for name, (kind, content, shape) in tensors.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, at)
        body.append(content.tobytes())
        at += len(body[-1])
        if name != list(tensors)[-1]:  # nothing behind the rows, which the device finds at the file's end
            body.append(bytes(-at % _ALIGN))
            at += -at % _ALIGN
    return b"".join((head, bytes(-len(head) % _ALIGN), *body))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _value(value: str | float) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + _text(value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
