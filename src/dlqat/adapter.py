# SPDX-License-Identifier: Apache-2.0
"""What training adds to one frozen weight, and the exact integers that it means.

DL-QAT (arXiv 2504.09223), per group of inputs of one output row:

    V  = W0 + s * offset / 64 + (alpha / r) B A      the latent weight, float32
    q  = clip(round(V / s) + z, qmin, qmax)          integer codes
    W' = snap(m * s) * (q - z)                       what the layer multiplies with

`fold` returns q, z and snap(m * s): nothing is rounded after training, so folding is exact (law 2).
`offset` is a prepared start (GPTQ, AutoRound: where a better rounding wants the latent weight to be),
kept apart from W0 so that the float teacher, W0, stays in the same layer at one byte a weight (two where
the start is further than two steps away). `mask` holds pruned weights at exactly zero: q = z there.

The corners of the paper's field are the same value with parts left out: no LoRA is PEQA, no magnitude
is NNCF's FQ_LORA, no magnitude with trained scales is L4Q.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dlqat import atomic, tensor_file
from dlqat.folded import Quantized
from dlqat.grid import Grid, quantize
from dlqat.refusal import Refusal
from dlqat.tensor_writer import ROWS, blocks

OFFSET_UNIT = 1.0 / 64
"""A step of `offset`, in steps of the grid; int8 reaches two grid steps either way, int16 512."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """scales and magnitude float32 [out, groups], zero_points int8 [out, groups], lora_a [r, in],
    lora_b [out, r] (already without alpha / r, which is `scaling`), offset int8 or int16 [out, in], mask bool [out, in]."""

    grid: Grid
    scales: Tensor
    zero_points: Tensor | None = None
    magnitude: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    scaling: float = 1.0
    offset: Tensor | None = None
    mask: Tensor | None = None
    """False: the weight is pruned."""


def grid_scales(adapter: Adapter) -> Tensor:
    """s: the scales that codes are made on."""
    return adapter.grid.round_scales(adapter.scales)


def folded_scales(adapter: Adapter) -> Tensor:
    """snap(m * s): the scales that ship, float32 [out, groups]."""
    s = grid_scales(adapter)
    return s if adapter.magnitude is None else adapter.grid.round_scales(adapter.magnitude * s)


def rows(adapter: Adapter, block: slice) -> Adapter:
    """The adapter of some output rows (views)."""

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[block]

    return replace(
        adapter,
        scales=adapter.scales[block],
        zero_points=cut(adapter.zero_points),
        magnitude=cut(adapter.magnitude),
        lora_b=cut(adapter.lora_b),
        offset=cut(adapter.offset),
        mask=cut(adapter.mask),
    )


def base_unit(grid: Grid) -> float:
    """A step of a fixed-point base, in steps of the grid: 8 bits reach twice as far as the grid's codes."""
    return 2.0 ** (grid.bits - 7)


def fixed_point(weight: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """weight [out, in] as int8 k, for (k + 1/2) s * base_unit: a base of one byte (after LR-QAT, arXiv 2406.06385).

    scales [out, groups]: the grid's, as they are when training begins. Twice the range of the codes, so that what a
    searched scale clips is still in the base (LR-QAT's fixed point ends where the grid ends). The half puts every tie of
    the rounding between two numbers: codes are those of the weight. With multiples of the unit one weight in eight
    would lie on a tie, and the first update, however small, would move all of them.
    """
    out, groups = scales.shape
    step = grid.round_scales(scales)[..., None] * base_unit(grid)
    levels = weight.to(torch.float32).view(out, groups, -1) / step
    return levels.floor_().clamp_(-128, 127).to(torch.int8).view(weight.shape)


def base(weight: Tensor, adapter: Adapter) -> Tensor:
    """W0 [out, in] float32: `weight`, or what its fixed point stands for (exact: 17 significant bits)."""
    if weight.dtype != torch.int8:
        return weight.to(torch.float32)
    out, groups = adapter.scales.shape
    step = (grid_scales(adapter) * base_unit(adapter.grid))[..., None]
    return ((weight.view(out, groups, -1) + 0.5) * step).view(out, -1)


def latent(weight: Tensor, adapter: Adapter) -> Tensor:
    """V [out, in] float32, a fresh tensor; weight float, or int8 from `fixed_point`."""
    v = base(weight, adapter)
    if adapter.lora_a is not None and adapter.lora_b is not None:
        v = torch.addmm(v, adapter.lora_b.float(), adapter.lora_a.float(), alpha=adapter.scaling)
    elif v is weight:
        v = v.clone()
    if adapter.offset is not None:
        out, groups = adapter.scales.shape
        step = (grid_scales(adapter) * OFFSET_UNIT)[..., None]
        v.view(out, groups, -1).addcmul_(adapter.offset.view(out, groups, -1).to(torch.float32), step)
    return v


def fold(weight: Tensor, adapter: Adapter) -> Quantized:
    """The integers of weight [out, in] under `adapter`: exactly those of the training forward."""
    if adapter.lora_a is not None or weight.numel() <= ROWS:  # other blocks of a product may be summed in another order
        return _fold(weight, adapter)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(adapter.scales.shape, device=weight.device)
    part = None
    for block in blocks(*weight.shape):  # an embedding in float32 would be the largest thing of all
        part = _fold(weight[block], rows(adapter, block))
        codes[block], scales[block] = part.codes, part.scales
    assert part is not None
    return Quantized(part.grid, codes, scales, None if part.zero_points is None else adapter.zero_points)


def _fold(weight: Tensor, adapter: Adapter) -> Quantized:
    codes = quantize(latent(weight, adapter), grid_scales(adapter), adapter.zero_points, adapter.grid)
    if adapter.mask is not None:
        out, groups = adapter.scales.shape
        zero = codes.new_zeros(out, groups) if adapter.zero_points is None else adapter.zero_points
        codes = torch.where(adapter.mask.view(out, groups, -1), codes.view(out, groups, -1), zero[..., None])
        codes = codes.view(weight.shape)
    if not adapter.grid.mirrored:
        return Quantized(adapter.grid, codes, folded_scales(adapter), adapter.zero_points)
    assert adapter.zero_points is not None
    out, groups = adapter.scales.shape
    codes = (codes.view(out, groups, -1) - adapter.zero_points[..., None]).view(weight.shape)
    return Quantized(adapter.grid.folded, codes, folded_scales(adapter))


_TENSORS = ("scales", "zero_points", "magnitude", "lora_a", "lora_b", "offset", "mask")


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Adapter tensors named MODULE.field to one safetensors file, atomically; grids travel in the recipe."""
    with atomic.file(path) as draft:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, draft)


def load(path: Path) -> dict[str, Tensor]:
    """All tensors of an adapter file by name. Refusal if it cannot be read."""
    return tensor_file.every(path, "; train again")


def need(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of that name. Refusal if there is none."""
    if name not in tensors:
        raise Refusal(f"{name} is missing among the adapters; delete the folder and train again")
    return tensors[name]


def read(
    path: Path, grids: Mapping[str, tuple[Grid, float]], tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Adapter]:
    """The adapters of `path` (whose `tensors` may be at hand) for modules with the given grid and alpha / r.

    Refusal names the damage."""
    if tensors is None:
        tensors = load(path)
    adapters: dict[str, Adapter] = {}
    for name, (grid, scaling) in grids.items():
        parts = {f: tensors[f"{name}.{f}"] for f in _TENSORS if f"{name}.{f}" in tensors}
        if "scales" not in parts:
            raise Refusal(f"{path}: {name}.scales is missing; train again")
        adapter = Adapter(grid, **parts, scaling=scaling)
        if (reason := damage(adapter)) is not None:
            raise Refusal(f"{path}: {name}.{reason}; train again")
        adapters[name] = adapter
    return adapters


def damage(adapter: Adapter) -> str | None:
    """What is wrong with the numbers of an adapter, or None: 'magnitude holds a value <= 0', ..."""
    groups = adapter.scales.shape
    for field in _TENSORS:
        tensor: Tensor | None = getattr(adapter, field)
        if tensor is None:
            continue
        if tensor.is_floating_point() and not tensor_file.finite(tensor):
            return f"{field} holds NaN or infinity"
        if field in ("scales", "magnitude") and not bool((tensor > 0).all()):
            return f"{field} holds a value <= 0"
        if field in ("magnitude", "zero_points") and tensor.shape != groups:
            return f"{field} has shape {tuple(tensor.shape)}, scales have {tuple(groups)}"
    if adapter.mask is not None and adapter.mask.dtype != torch.bool:
        return f"mask has dtype {adapter.mask.dtype}, not bool"
    if (adapter.lora_a is None) != (adapter.lora_b is None):
        return "lora_a and lora_b must come together"
    zeros = adapter.zero_points
    if adapter.grid.zero_points == (zeros is None):
        return "zero_points and the grid's symmetry disagree"
    if zeros is not None and adapter.grid.mirrored and not bool(((zeros == 0) | (zeros == -1)).all()):
        return "zero_points of a mirrored grid are 0 or -1"
    return None
