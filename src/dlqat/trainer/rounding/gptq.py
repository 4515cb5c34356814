# SPDX-License-Identifier: Apache-2.0
"""GPTQ (arXiv 2210.17323) of one linear: round column by column, spread each error over the columns to come.
Pruning in the same sweep is SparseGPT: a pruned weight is rounded to zero, and its error is spread alike.

With H = X^T X of the layer's inputs, U the upper Cholesky factor of H^-1: after column j is rounded, its
error e_j = (w_j - w^_j) / U_jj is taken from the columns k > j as e_j U_jk. Columns go in blocks of 128 so
that most of the spreading is one matrix product. Damping 1 % of the mean diagonal; no reordering.

What is returned is not only codes but the weight as it stood when each column was rounded: rounding that
to nearest gives GPTQ's codes, which makes it a start for training (dlqat.adapter, `offset`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlqat.grid import Grid
from dlqat.trainer.rounding.search import search

BLOCK = 128
DAMPING = 0.01


@dataclass(frozen=True, slots=True)
class Pattern:
    """Keep the `kept` most important of every `among` neighbouring inputs (N:M); SparseGPT's choice, made when a
    group's turn comes: the weights, as compensated so far, of the largest w^2 / [H^-1]_jj (arXiv 2301.00774)."""

    kept: int
    among: int

    def mask(self, scores: Tensor) -> Tensor:
        """bool [out, columns]: True for the `kept` largest scores of every `among` columns."""
        grouped = scores.reshape(scores.shape[0], -1, self.among)
        best = grouped.topk(self.kept, -1).indices
        return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, value=True).view(scores.shape)


@dataclass(frozen=True, eq=False)
class Swept:
    """made float32 [out, in] whose rounding is the result; scales and zero_points [out, groups]; mask bool [out, in]."""

    made: Tensor
    scales: Tensor
    zero_points: Tensor | None
    mask: Tensor | None


def compensate(weight: Tensor, hessian: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight float32 [out, in] whose rounding to nearest is GPTQ's result; its scales and zero_points [out, groups]."""
    swept = sweep(weight, hessian, grid)
    return swept.made, swept.scales, swept.zero_points


def sweep(weight: Tensor, hessian: Tensor, grid: Grid, pattern: Pattern | None = None) -> Swept:
    """Round, and with a `pattern` prune, column by column.

    hessian: X^T X [in, in] of the inputs that the layer sees. A group's scales are searched when its turn
    comes, on the weight as compensated so far (and as its own scores would prune it), each input weighed by its own
    second moment. A pattern's `among` divides the group size.
    """
    w = weight.to(torch.float32).clone()
    out, inputs = w.shape
    groups = grid.groups(inputs)
    size, whole = inputs // groups, replace(grid, group_size=None)
    importance, factor = hessian.diagonal(), inverse_factor(hessian.to(torch.float32))
    made, mask = torch.zeros_like(w), torch.ones_like(w, dtype=torch.bool)
    scales, zeros = w.new_empty(out, groups), w.new_zeros(out, groups)
    among = pattern.among if pattern else 1
    for start in range(0, inputs, BLOCK // among * among):
        stop = min(start + BLOCK // among * among, inputs)
        block, errors = w[:, start:stop], w.new_zeros(out, stop - start)
        for j in range(start, stop):
            group, column = j // size, w[:, j]
            if pattern and j % among == 0:
                mask[:, j : j + among] = _kept(w, factor, slice(j, j + among), pattern)
            if j % size == 0:
                columns = slice(j, j + size)
                left = w[:, columns] if pattern is None else w[:, columns] * _kept(w, factor, columns, pattern)
                found, z = search(left, whole, importance[columns])
                scales[:, group] = found[:, 0]
                if z is not None:
                    zeros[:, group] = z[:, 0].float()
            made[:, j] = column * mask[:, j]
            rounded = _round(column, scales[:, group], zeros[:, group], grid) * mask[:, j]
            errors[:, j - start] = (column - rounded) / factor[j, j]
            block[:, j - start + 1 :].addr_(errors[:, j - start], factor[j, j + 1 : stop], alpha=-1)
        w[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    return Swept(made, scales, zeros.to(torch.int8) if grid.zero_points else None, mask if pattern else None)


def _kept(w: Tensor, factor: Tensor, columns: slice, pattern: Pattern) -> Tensor:
    return pattern.mask((w[:, columns] / factor.diagonal()[columns]).square())


def _round(column: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    return (column / scales).round_().clamp_(grid.qmin - zeros, grid.qmax - zeros) * scales


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped inverse; inputs that were never active stay alone."""
    diagonal = hessian.diagonal()
    damp = DAMPING * float(diagonal.mean()) or 1.0
    damped = hessian + torch.diag(torch.full_like(diagonal, damp))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
