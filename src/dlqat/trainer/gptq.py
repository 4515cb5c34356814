# SPDX-License-Identifier: Apache-2.0
"""GPTQ (arXiv 2210.17323) of one linear: round column by column, spread each error over the columns to come.

With H = X^T X of the layer's inputs, U the upper Cholesky factor of H^-1: after column j is rounded, its
error e_j = (w_j - w^_j) / U_jj is taken from the columns k > j as e_j U_jk. Columns go in blocks of 128 so
that most of the spreading is one matrix product. Damping 1 % of the mean diagonal; no reordering.

What is returned is not only codes but the weight as it stood when each column was rounded: rounding that
to nearest gives GPTQ's codes, which makes it a start for training (dlqat.adapter, `offset`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlqat.grid import Grid
from dlqat.trainer.search import search

BLOCK = 128
DAMPING = 0.01


def compensate(weight: Tensor, hessian: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight float32 [out, in] whose rounding to nearest is GPTQ's result; its scales and zero_points [out, groups].

    hessian: X^T X [in, in] of the inputs that the layer sees. A group's scales are searched when its turn
    comes, on the weight as compensated so far, each input weighed by its own second moment.
    """
    w = weight.to(torch.float32).clone()
    made = torch.empty_like(w)
    out, inputs = w.shape
    size = inputs // grid.groups(inputs)
    importance, factor = hessian.diagonal(), _inverse_factor(hessian.to(torch.float32))
    scales, zeros = torch.empty(out, inputs // size), torch.zeros(out, inputs // size)
    whole = Grid(grid.bits, None, grid.symmetric, grid.power_of_two)
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        block, errors = w[:, start:stop], torch.zeros(out, stop - start)
        for j in range(stop - start):
            group, column = (start + j) // size, block[:, j]
            if (start + j) % size == 0:
                columns = slice(start + j, start + j + size)
                found, z = search(w[:, columns], whole, importance[columns])
                scales[:, group] = found[:, 0]
                if z is not None:
                    zeros[:, group] = z[:, 0].float()
            made[:, start + j] = column
            rounded = _round(column, scales[:, group], zeros[:, group], grid)
            errors[:, j] = (column - rounded) / factor[start + j, start + j]
            block[:, j + 1 :].addr_(errors[:, j], factor[start + j, start + j + 1 : stop], alpha=-1)
        w[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    return made, scales, None if grid.symmetric else zeros.to(torch.int8)


def _round(column: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    return (column / scales).round_().clamp_(grid.qmin - zeros, grid.qmax - zeros) * scales


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped inverse; inputs that were never active stay alone."""
    diagonal = hessian.diagonal()
    damp = DAMPING * float(diagonal.mean()) or 1.0
    damped = hessian + torch.diag(torch.full_like(diagonal, damp))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
