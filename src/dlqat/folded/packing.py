# SPDX-License-Identifier: Apache-2.0
"""How one folded layer lies in safetensors: compressed-tensors' suffixes for every leaf, its structure as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dlqat import json_file, tree
from dlqat.folded import words
from dlqat.folded.layer import Folded, Quantized
from dlqat.grid import Grid, as_json
from dlqat.quiet import quiet
from dlqat.refusal import Refusal
from dlqat.tensor_writer import Writer, blocks


@cache
def _packing() -> Any:
    """compressed-tensors' helpers, imported when there is something to pack: they bring all of transformers, and it
    torchao with its remarks, which no --help waits for."""
    with quiet():
        from compressed_tensors.compressors.pack_quantized import helpers
    return helpers


def write(leaf: Quantized, name: str, file: Writer) -> None:
    """The tensors of a leaf, under transformers' names for such a linear. Packing makes several int32 of every code, so some
    rows at a time."""
    file.add(f"{name}.weight_scale", leaf.scales.to(torch.float32))
    if leaf.zero_points is not None:
        file.add(f"{name}.weight", leaf.codes)
        file.add(f"{name}.weight_zero_point", leaf.zero_points)
        return
    (out, inputs), bits = leaf.codes.shape, leaf.grid.bits
    pack = words.pack if bits in words.WIDTHS else _packing().pack_to_int32
    packed = (pack(leaf.codes[block], bits).contiguous() for block in blocks(out, inputs))
    file.rows(f"{name}.weight_packed", torch.int32, (out, -(-inputs * bits // 32)), packed)
    file.add(f"{name}.weight_shape", torch.tensor(leaf.codes.shape))


def _restore(grid: Grid, name: str, tensor: Callable[[str], Tensor]) -> Quantized:
    scales = tensor(f"{name}.weight_scale")
    if not grid.symmetric:
        return Quantized(grid, tensor(f"{name}.weight"), scales, tensor(f"{name}.weight_zero_point"))
    shape = torch.Size(map(int, tensor(f"{name}.weight_shape").flatten().tolist()))
    packed = tensor(f"{name}.weight_packed")
    if len(shape) != 2 or min(shape) < 1 or packed.dtype != torch.int32:
        raise Refusal(f"{name}: {packed.dtype} of shape {list(shape)} holds no packed integers")
    wide = -(-shape[1] * grid.bits // 32)
    if tuple(packed.shape) != (shape[0], wide):
        raise Refusal(f"{name}.weight_packed has shape {tuple(packed.shape)}, {tuple(shape)} needs {(shape[0], wide)}")
    return Quantized(grid, _unpack(packed, grid.bits, shape), scales)


def _unpack(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """Codes int8 of `shape`, some rows at a time: unpacking makes int32 of every code (0.3 GB for an embedding)."""
    if bits in words.WIDTHS:
        return words.unpack(packed, bits, shape[1]).contiguous()
    helpers = _packing()
    codes = torch.empty(shape, dtype=torch.int8)
    for block in blocks(*shape):
        part = packed[block]
        codes[block] = helpers.unpack_from_int32(part, bits, torch.Size((len(part), shape[1])))
    return codes


def describe(layer: Folded) -> dict[str, Any]:
    """The structure of a layer, for dlqat.json; `build` reads it."""
    return tree.to_json(layer, lambda leaf: {"kind": "quantized", **as_json(leaf.grid)}, lambda labels: {})


def build(node: Mapping[str, Any], name: str, tensor: Callable[[str], Tensor]) -> Folded:
    """The layer of a structure, its tensors by name. Refusal if a shape or kind makes no sense."""

    def leaf(fields: Mapping[str, Any], path: str) -> Quantized:
        match fields:
            case {"kind": "quantized", **grid}:
                return _restore(json_file.exactly(grid, Grid, f"{path}, its grid"), path, tensor)
            case _:
                raise Refusal(f"{path}: layer kind {fields.get('kind')!r} is not known to this dlqat")

    return tree.from_json(node, name, leaf, lambda _, path: tensor(f"{path}.labels"), lambda _, path: None)
