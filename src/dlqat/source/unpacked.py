# SPDX-License-Identifier: Apache-2.0
"""folded/ in transformers without its weights in memory: each is unpacked when its layer runs, and let go after it.

transformers leaves the integers in mapped files until the first forward, and then unpacks all of them: 32 GB of an 8B model.
Here the same code of compressed-tensors unpacks one layer at a time, some rows at a time; the embedding, which stands in
bfloat16, becomes float32 when it is needed. The numbers are the same, bit for bit. Every forward pays for the unpacking (half
a second for 100 million weights on one core), so a model that fits is held as ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlqat import architecture, json_file, tensor_file
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.source import pretrained
from dlqat.tensor_writer import blocks

HELD = 2_000_000_000
"""Bytes of float32 weights up to which a model is held whole."""
_PACKED = "dlqat_packed"


def load(folder: Path) -> Any:
    """The model of folded/, as pretrained.model gives it; of a large one the weights stay where they are."""
    network = pretrained.model(folder)
    if 4 * _numbers(folder) > HELD:
        apart(network, folder)
    return network


def _numbers(folder: Path) -> int:
    facts = architecture.read(json_file.read(folder / "config.json"))
    shapes = [*facts.linears().values(), *[(facts.vocab_size, facts.hidden_size)] * (1 if facts.tied else 2)]
    return sum(map(prod, shapes))


def apart(network: Any, folder: Path) -> None:
    """Let `network`, which has not run yet, unpack each weight when its layer runs."""
    if (hook := getattr(network, "ct_decompress_hook", None)) is not None:
        hook.remove()
        del network.ct_decompress_hook
    for module in network.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _wrap(module)
    path = folder / "model.safetensors"
    embedding, head = network.get_submodule(EMBEDDING), network.get_submodule(HEAD)
    stored = tensor_file.tensor(path, f"{EMBEDDING}.weight")
    if stored.dtype != torch.float32:
        tied = getattr(head, "weight", None) is embedding.weight
        for module in (embedding, head) if tied else (embedding,):
            module.weight = nn.Parameter(stored, requires_grad=False)
            _wrap(module)


@contextlib.contextmanager
def whole(module: nn.Module) -> Generator[Tensor]:
    """The weight [out, in] float32 that the module multiplies with, as long as the block runs."""
    if not hasattr(module, _PACKED):
        yield module.weight.detach()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        return
    _unpack(module, ())
    try:
        yield module.weight.detach()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    finally:
        _let_go(module, (), None)


def _wrap(module: nn.Module) -> None:
    setattr(module, _PACKED, None)
    module.register_forward_pre_hook(_unpack)
    module.register_forward_hook(_let_go, always_call=True)


def _unpack(module: nn.Module, _: Any) -> None:
    kept = dict(module._parameters), dict(module._buffers)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    weight = _dense(module)
    setattr(module, _PACKED, kept)
    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def _let_go(module: nn.Module, _: Any, __: Any) -> None:
    kept: Any = getattr(module, _PACKED)
    if kept is not None:
        module._parameters, module._buffers = kept  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        setattr(module, _PACKED, None)


def _dense(module: nn.Module) -> Tensor:
    scheme: Any = getattr(module, "quantization_scheme", None)
    if scheme is None:
        return module.weight.detach().float()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format

    compressor: Any = BaseCompressor.get_value_from_registry(
        (scheme.format or infer_module_format(type(module), scheme)).value
    )
    state = {n: t.detach() for n, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]}
    state.pop("bias", None)
    shape = state.pop("weight_shape", None)
    out, inputs = state["weight"].shape if shape is None else map(int, shape)
    dense = torch.empty(out, inputs)
    for block in blocks(out, inputs):
        rows = {name: tensor[block] for name, tensor in state.items()}
        if shape is not None:
            rows["weight_shape"] = torch.tensor([len(dense[block]), inputs])
        dense[block] = compressor.decompress(rows, scheme)["weight"]
    return dense
