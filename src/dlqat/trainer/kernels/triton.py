# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels behind the signatures of `reference`: shapes in, launches out.

Runs on NVIDIA and AMD GPUs, and on a CPU under Triton's interpreter (TRITON_INTERPRET=1), where the tests
compare it with the reference. Tile sizes are those that were fastest of a list (benchmarks/kernel_tiles.py). They are
not chosen while training, as triton.autotune would: the order of the sums in dA and dB follows from them, and so a
run that is continued could end in other numbers.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from dlqat.adapter import Adapter, base_unit
from dlqat.trainer.kernels.reference import Gradients
from dlqat.trainer.kernels.triton_activation import fake_quant_kernel
from dlqat.trainer.kernels.triton_backward import weight_backward_kernel
from dlqat.trainer.kernels.triton_forward import weight_forward_kernel


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program of the kernels that stream the weight takes: `steps` tiles of [rows, columns], one after the other."""

    rows: int
    columns: int
    steps: int
    warps: int

    def wide(self, group: int) -> Tile:
        """This tile, or one of the same size that holds a whole group of inputs."""
        if group <= self.columns:
            return self
        return replace(self, columns=group, rows=max(16, self.rows * self.columns // group))


NVIDIA, OTHERS = (Tile(32, 128, 1, 4), Tile(64, 64, 4, 4)), (Tile(32, 128, 8, 4), Tile(16, 128, 8, 4))
"""Forward and backward. NVIDIA: the fastest on an H200. Others (and the interpreter): by the registers that the compiler
reports for AMD, not measured."""
# A launch has arguments (grid, num_warps) that are not those of the function: no type describes it.
_forward: Any = weight_forward_kernel
_backward: Any = weight_backward_kernel
_activation: Any = fake_quant_kernel
EXACT: dict[str, Any] = {"enable_fp_fusion": False}


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a matrix [out, in] with `groups` groups a row is cut."""

    columns: int
    group: int
    """Inputs of a group in a tile: those of the group, or all columns where the group is the row."""
    tiles: int
    parts: int
    """Columns of the sums per group that kernels write; the caller adds them up if they are not `groups`."""

    @staticmethod
    def of(in_features: int, groups: int, columns: int) -> Tiles:
        tiles = _cdiv(in_features, columns)
        if groups == 1:
            return Tiles(columns, columns, tiles, tiles)
        return Tiles(columns, in_features // groups, tiles, groups)


def weight_forward(weight: Tensor, adapter: Adapter, dtype: torch.dtype) -> Tensor:
    """As reference.weight_forward."""
    out, inputs = weight.shape
    made = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    groups = adapter.scales.shape[1]
    tile = _tiles(weight)[0].wide(inputs // groups if groups > 1 else 1)
    tiles = Tiles.of(inputs, groups, tile.columns)
    steps = min(tile.steps, _cdiv(out, tile.rows))
    grid = (tiles.tiles, _cdiv(out, tile.rows * steps))
    with _on(weight):
        _forward[grid](
            *_tensors(weight, adapter), made, out, inputs, groups, _rank(adapter), adapter.scaling,
            **_constants(weight, adapter, tiles), ROWS=tile.rows, STEPS=steps, num_warps=tile.warps, **EXACT,
        )  # fmt: skip
    return made


def weight_backward(
    weight: Tensor, adapter: Adapter, grad: Tensor, dtype: torch.dtype, train_scales: bool = False
) -> tuple[Tensor, Gradients]:
    """As reference.weight_backward."""
    out, inputs = weight.shape
    groups = adapter.scales.shape[1]
    tile = _tiles(weight)[1].wide(inputs // groups if groups > 1 else 1)
    tiles = Tiles.of(inputs, groups, tile.columns)
    steps = min(tile.steps, _cdiv(out, tile.rows))
    grid = (tiles.tiles, _cdiv(out, tile.rows * steps))
    made, partial = _outputs(weight, adapter, dtype, train_scales, tiles, strips=grid[1])
    with _on(weight):
        _backward[grid](
            grad.contiguous(), *_tensors(weight, adapter), made, *_sums(partial), *_sizes(weight, adapter, tiles),
            **_constants(weight, adapter, tiles), ROWS=tile.rows, STEPS=steps, num_warps=tile.warps, **EXACT,
        )  # fmt: skip
    return made, _add_up(partial, adapter)


def fake_quant(x: Tensor) -> Tensor:
    """As dlqat.trainer.layers.activation.fake_quant."""
    flat = x.contiguous().view(-1, x.shape[-1])
    made = torch.empty_like(flat)
    block = triton.next_power_of_2(x.shape[-1])
    if len(flat):
        with _on(x):
            _activation[(len(flat),)](
                flat, made, x.shape[-1], BLOCK=block, num_warps=min(16, max(1, block // 512)), **EXACT
            )
    return made.view(x.shape)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _rank(adapter: Adapter) -> int:
    return 0 if adapter.lora_a is None else adapter.lora_a.shape[0]


def _tensors(weight: Tensor, adapter: Adapter) -> tuple[Tensor | None, ...]:
    tensors = (
        weight, adapter.scales, adapter.zero_points, adapter.magnitude, adapter.lora_a, adapter.lora_b, adapter.offset
    )  # fmt: skip
    return tuple(None if t is None else t.detach().contiguous() for t in tensors)


def _sizes(weight: Tensor, adapter: Adapter, tiles: Tiles) -> tuple[float, ...]:
    """The kernels' arguments from out_features to lsq."""
    group = weight.shape[1] // adapter.scales.shape[1]
    lsq = 1.0 / math.sqrt(group * max(adapter.grid.qmax, 1))
    return (*weight.shape, adapter.scales.shape[1], tiles.parts, _rank(adapter), adapter.scaling, lsq)


def _nvidia(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.version.hip is None


def _tiles(tensor: Tensor) -> tuple[Tile, Tile]:
    return NVIDIA if _nvidia(tensor) else OTHERS


def _constants(weight: Tensor, adapter: Adapter, tiles: Tiles) -> dict[str, Any]:
    grid, nvidia = adapter.grid, _nvidia(weight)
    return {
        "NVIDIA": nvidia,
        # Low-rank products: float32 out of three tf32 products on NVIDIA's tensor cores, which AMD does not have.
        "DOT": "tf32x3" if nvidia else "ieee",
        "QMIN": grid.qmin,
        "QMAX": grid.qmax,
        "SCALE_BITS": 1 if grid.power_of_two else grid.scale_bits,
        "BASE_UNIT": base_unit(grid),
        "GROUPS": tiles.columns // tiles.group,
        "GROUP": tiles.group,
        "RANK": max(16, triton.next_power_of_2(_rank(adapter))),  # tl.dot's least
    }


@dataclass(frozen=True, eq=False, slots=True)
class _Partial:
    """Sums as the kernels leave them: a, b over the other axis' tiles; the others [out, parts]."""

    a: Tensor | None
    b: Tensor | None
    magnitude: Tensor | None
    scales: Tensor | None


def _outputs(
    weight: Tensor, adapter: Adapter, dtype: torch.dtype, train_scales: bool, tiles: Tiles, strips: int
) -> tuple[Tensor, _Partial]:
    (out, inputs), rank = weight.shape, _rank(adapter)

    def empty(wanted: bool, *shape: int) -> Tensor | None:
        return torch.empty(shape, dtype=torch.float32, device=weight.device) if wanted else None

    partial = _Partial(
        empty(bool(rank), strips, rank, inputs),
        empty(bool(rank), tiles.tiles, out, rank),
        empty(adapter.magnitude is not None, out, tiles.parts),
        empty(train_scales, out, tiles.parts),
    )
    return torch.empty(weight.shape, dtype=dtype, device=weight.device), partial


def _sums(partial: _Partial) -> tuple[Tensor | None, ...]:
    return partial.magnitude, partial.scales, partial.a, partial.b


def _add_up(partial: _Partial, adapter: Adapter) -> Gradients:
    groups = adapter.scales.shape[1]

    def per_group(sums: Tensor | None) -> Tensor | None:
        return sums if sums is None or sums.shape[1] == groups else sums.sum(1, keepdim=True)

    def whole(sums: Tensor | None) -> Tensor | None:
        return None if sums is None else sums.sum(0)

    return Gradients(whole(partial.a), whole(partial.b), per_group(partial.magnitude), per_group(partial.scales))
