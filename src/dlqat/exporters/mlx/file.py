# SPDX-License-Identifier: Apache-2.0
"""model.safetensors, written one tensor at a time, so a model may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dlqat import tensor_writer
from dlqat.architecture import Decoder
from dlqat.exporters.mlx import storage
from dlqat.exporters.storage import Leaf, weight
from dlqat.folded import Quantized
from dlqat.folded.disk import FoldedModel


def write(path: Path, model: FoldedModel, dtype: torch.dtype, done: Callable[[str], None]) -> dict[str, int]:
    """Write the file; bytes by tensor."""
    sizes: dict[str, int] = {}
    with tensor_writer.writing(path, {"format": "mlx"}, tensor_writer.as_they_come) as file:
        for name, tensor in _all(model, dtype):
            file.add(name, tensor)
            sizes[name] = tensor.numel() * tensor.element_size()
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
