# SPDX-License-Identifier: Apache-2.0
"""model.safetensors, written one tensor at a time: the header first, so a model may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dlqat.architecture import Decoder
from dlqat.exporters.mlx import storage
from dlqat.exporters.storage import Leaf, weight
from dlqat.folded import Quantized
from dlqat.folded.disk import FoldedModel

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "U32"}


def write(path: Path, model: FoldedModel, dtype: torch.dtype, done: Callable[[str], None]) -> dict[str, int]:
    """Write the file; bytes by tensor."""
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    sizes: dict[str, int] = {}
    at = 0
    for name, tensor in _all(model, dtype):
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        sizes[name] = size
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in _all(model, dtype):
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            if name.endswith(".weight"):
                done(name)
    return sizes


def quantization(model: FoldedModel, facts: Decoder) -> dict[str, object]:
    """config.json's "quantization": the most frequent layout, and each layer's own where it is another."""
    layouts = {name: _layout(w) for name, w in _weights(model)}
    inner = [layout for name, layout in layouts.items() if name in facts.linears() and layout is not None]
    usual = max(inner, key=inner.count) if inner else {"group_size": 64, "bits": 4}
    return {**usual, **{name: layout or False for name, layout in layouts.items() if layout != usual}}


def _layout(w: Leaf) -> dict[str, int] | None:
    if isinstance(w, Tensor):
        return None
    size = storage.group(w)
    assert size is not None
    return {"group_size": size, "bits": storage.bits(w)}


def _weights(model: FoldedModel) -> Iterator[tuple[str, Leaf]]:
    """What mlx-lm can quantize; a tied head is none of them."""
    for name in model.layers:
        w = weight(model, name)
        assert isinstance(w, Leaf)  # plan refuses the others
        yield name, w
    for name in model.tensors:
        if name.endswith(".weight") and model.tensors[name].ndim == 2:
            yield name.removesuffix(".weight"), model.tensors[name]


def _all(model: FoldedModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name in model.layers:
        w = model.layers[name]
        assert isinstance(w, Quantized)
        yield from ((f"{name}.{suffix}", tensor) for suffix, tensor in storage.tensors(w, dtype).items())
    yield from ((name, model.tensors[name].to(dtype).contiguous()) for name in model.tensors)
