# SPDX-License-Identifier: Apache-2.0
"""Scales and zero-points that round a weight best: a search per group on the squared error.

Min-max scales serve the largest weight of a group; at 3 bits and below the many small ones matter more.
The search tries shrunken ranges and keeps, group by group, the one of least squared error among scales
that the grid may have (snapped), so that training starts from what will ship. `refit` then moves each scale to
where it serves the codes that it gave best. A weight that lies on the grid already (a .gguf file that dlqat wrote, read
again) keeps its scales: whatever the largest code of a group is, the step that makes it one is tried first.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from dlqat.grid import Grid

SHRINK = torch.linspace(1.0, 0.3, 57)
COARSE = SHRINK[::4]
"""Ranges enough where a refit follows: its squared error is within 0.1 % of that after all of them (SmolLM2, 3 and 4 bits)."""
BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Elements of the weight searched at a time: what stays in a CPU's cache, what fills a GPU (1B: see docs/kernels.md).
The memory of the search is a few float32 copies of so many."""


def search(
    weight: Tensor, grid: Grid, importance: Tensor | None = None, shrink: Tensor = SHRINK
) -> tuple[Tensor, Tensor | None]:
    """scales float32 and zero_points int8 (None if the grid has none), both [out, groups], of weight [out, in].

    `importance` [in] weighs the squared error of each input (its mean square activation); `shrink`: the ranges to try,
    as parts of the whole one.
    """
    size = max(1, BLOCK.get(weight.device.type, BLOCK["cpu"]) // weight.shape[1])
    steps = _lies_on(weight[:1], grid)
    parts = [_search_rows(rows, grid, importance, shrink, steps=steps) for rows in weight.split(size)]
    scales = torch.cat([s for _, s, _ in parts])
    if not grid.zero_points:
        return scales, None
    return scales, torch.cat([z for *_, z in parts]).to(torch.int8)


def _lies_on(row: Tensor, grid: Grid) -> bool:
    """Whether a weight's first row lies on the grid; one without values (meta) does not. GPTQ asks for every group, so what
    has more numbers in a group than the grid has codes is told at once."""
    if not len(row) or row.is_meta:
        return False
    group = row[0, : row.shape[1] // grid.groups(row.shape[1])]
    if len(group.unique()) > grid.qmax - grid.qmin + 1:
        return False
    return not _search_rows(row, grid, None, SHRINK[:0], steps=True)[0].any()


ROUNDS = 2


@torch.no_grad()
def refit(weight: Tensor, found: tuple[Tensor, Tensor | None], grid: Grid, importance: Tensor) -> Tensor:
    """Scales [out, groups] of least squared error on the codes that `found` (scales, zero_points) gives.

    With codes c = q - z and h the importance of an input, sum h (w - s c)^2 is least at s = sum h w c / sum h c^2. New
    scales give new codes: ROUNDS times, and of all rounds each group keeps its best.
    """
    scales, zero_points = found
    size = max(1, BLOCK.get(weight.device.type, BLOCK["cpu"]) // weight.shape[1])
    zeros = torch.zeros_like(scales) if zero_points is None else zero_points.float()
    rows = zip(weight.split(size), scales.split(size), zeros.split(size), strict=True)
    return torch.cat([_refit_rows(w, s, z, grid, importance) for w, s, z in rows])


def _refit_rows(weight: Tensor, scales: Tensor, zeros: Tensor, grid: Grid, importance: Tensor) -> Tensor:
    out, groups = scales.shape
    w, z = weight.to(torch.float32).view(out, groups, -1), zeros[..., None]
    h = importance.to(torch.float32).view(1, groups, -1)
    best, least = scales, torch.full_like(scales, torch.inf)
    for _ in range(ROUNDS + 1):
        codes = (w / scales[..., None]).round_().clamp_(grid.qmin - z, grid.qmax - z)
        error = (codes * scales[..., None]).sub_(w).square_().mul_(h).sum(-1)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
        weighed = codes * h
        over, under = (weighed * w).sum(-1), weighed.mul_(codes).sum(-1)
        scales = grid.round_scales(torch.where((over > 0) & (under > 0), over / under, scales))
    return best


def _search_rows(
    weight: Tensor, grid: Grid, importance: Tensor | None, shrink: Tensor, *, steps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Error, scales and zero-points [out, groups]. `steps`: try first those of a weight that lies on the grid."""
    out, inputs = weight.shape
    w = weight.to(torch.float32).view(out, grid.groups(inputs), -1)
    h = None if importance is None else importance.to(torch.float32).view(1, w.shape[1], -1)
    low, high = w.amin(-1), w.amax(-1)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for scales, zero_points in chain(_steps(low, high, grid) if steps else (), _candidates(low, high, grid, shrink)):
        error = _error(w, scales, zero_points, grid, h)
        if best is None:
            best = error, scales, zero_points
            continue
        better = error < best[0]
        best = (
            torch.where(better, error, best[0]),
            torch.where(better, scales, best[1]),
            torch.where(better, zero_points, best[2]),
        )
    assert best is not None
    return best


def _steps(low: Tensor, high: Tensor, grid: Grid) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and zero-points with which a group's largest code is 1, 2 and so on; with zero-points: its whole range. The last
    code first: a group with one weight that is not zero lies on every step, and a search puts that weight at the end."""
    zero = torch.zeros_like(low)
    if not grid.symmetric:
        low, high = low.clamp(max=0), high.clamp(min=0)
        for code in range(1, grid.qmax - grid.qmin + 1):
            yield _with_zero(low, grid.round_scales((high - low) / code), grid)
        return
    for code in _powers(grid.bits) if grid.power_of_two else (grid.qmax, *range(1, -grid.qmin + 1)):
        scales = grid.round_scales(torch.maximum(high, -low) / code)
        yield scales, zero
        if grid.mirrored:
            yield scales, zero - 1


def _powers(bits: int) -> list[int]:
    return [1 << i for i in range(bits)]


def _candidates(low: Tensor, high: Tensor, grid: Grid, shrink: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and zero-points of the ranges to try, of groups that reach from low to high."""
    zero = torch.zeros_like(low)
    for part in shrink.tolist():
        bottom, top = low * part, high * part
        if not grid.symmetric:
            yield _range(bottom, top, grid)
            continue
        # Both ends fit: the positive end has one level less, so a positive peak sets a larger step.
        yield grid.round_scales(torch.maximum(top / max(grid.qmax, 1), bottom / grid.qmin)), zero
        if grid.mirrored:
            yield grid.round_scales(torch.maximum(top / -grid.qmin, bottom / -grid.qmax)), zero - 1


def _range(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    low, high = low.clamp(max=0), high.clamp(min=0)
    return _with_zero(low, grid.round_scales((high - low) / (grid.qmax - grid.qmin)), grid)


def _with_zero(low: Tensor, scales: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    return scales, (grid.qmin - torch.round(low / scales)).clamp_(grid.qmin, grid.qmax)


def _error(w: Tensor, scales: Tensor, zero_points: Tensor, grid: Grid, h: Tensor | None) -> Tensor:
    s, z = scales[..., None], zero_points[..., None]
    q = (w / s).round_().clamp_(grid.qmin - z, grid.qmax - z)
    error = q.mul_(s).sub_(w).square_()
    return (error if h is None else error.mul_(h)).sum(-1)
