# SPDX-License-Identifier: Apache-2.0
"""PBS2P's progressive binarization with pruning (arXiv 2502.01705), in the form that a 2-bit grid holds exactly.

The paper's weights are mu + a B with two magnitudes a row and block and a second order for salient columns: no mobile
format has that. Here mu = 0 and there is one magnitude a group, so codes are {-1, 0, 1} and a is the group's scale.

    B = sign(W); M = all kept; a = fit
    m - n times:  of every m prune the one whose loss costs least;  refit a
    cost of j = 2 a B_j (R S)_j + a^2 S_jj,  R = W - a M B            what |R X|^2 grows by
    a = (M B) S W^T / (M B) S (M B)^T                                 S: second moments of the group's inputs

With mu = 0 the paper's score, w^2 / [H^-1]_jj^2, would not change from step to step, and pruning one at a time would be
pruning at once. The cost above changes with a, and is the quantity that is to be kept small. Groups go in order, and
what a group loses is spread over the columns to come (GPTQ). The paper's coarse stage, an N of its own for each block,
is the option `spread` of nm.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlqat.grid import Grid
from dlqat.trainer.rounding.gptq import Pattern, Swept, inverse_factor


def ternary(weight: Tensor, moments: Tensor, grid: Grid, pattern: Pattern) -> Swept:
    """weight [out, in] on a symmetric 2-bit grid with codes {-1, 0, 1}; `made` lies on the grid."""
    w = weight.to(torch.float32).clone()
    out, inputs = w.shape
    size = inputs // grid.groups(inputs)
    factor = inverse_factor(moments.float())
    made, mask = torch.zeros_like(w), torch.zeros_like(w, dtype=torch.bool)
    scales = w.new_empty(out, inputs // size)
    for group in range(inputs // size):
        columns = slice(group * size, (group + 1) * size)
        kept, a = progressive(w[:, columns], moments[columns, columns].float(), pattern)
        scales[:, group] = grid.round_scales(a)
        mask[:, columns] = kept
        made[:, columns] = scales[:, group, None] * _sign(w[:, columns]) * kept
        _spread(w, made, factor, columns)
    return Swept(made, scales, None, mask)


def progressive(w: Tensor, moments: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """mask bool [out, size] and magnitude [out] of one group of columns w [out, size]; moments [size, size]."""
    signs, mask = _sign(w), torch.ones_like(w, dtype=torch.bool)
    a = refit(w, signs, moments)
    for _ in range(pattern.among - pattern.kept):
        step = a[:, None] * signs
        cost = 2 * step * ((w - step * mask) @ moments) + step.square() * moments.diagonal()
        grouped = cost.masked_fill(~mask, torch.inf).view(len(w), -1, pattern.among)
        cheapest = torch.zeros_like(grouped, dtype=torch.bool).scatter_(
            -1, grouped.argmin(-1, keepdim=True), value=True
        )
        mask &= ~cheapest.view(w.shape)
        a = refit(w, signs * mask, moments)
    return mask, a


def refit(w: Tensor, signs: Tensor, moments: Tensor) -> Tensor:
    """The magnitude [out] of least |(w - a signs) X|^2, row by row; at least a grain above zero."""
    product = signs @ moments
    below = (product * signs).sum(1)
    a = (product * w).sum(1) / below.clamp(min=1e-30)
    # A row whose inputs are dead, or whose fit is negative, falls back to the mean magnitude of what it keeps.
    plain = (w * signs).sum(1) / signs.abs().sum(1).clamp(min=1)
    return torch.where((below > 0) & (a > 0), a, plain).clamp(min=2.0**-14)


def _sign(w: Tensor) -> Tensor:
    return torch.where(w >= 0, 1.0, -1.0)


def _spread(w: Tensor, made: Tensor, factor: Tensor, columns: slice) -> None:
    """Optimal brain surgeon's update of the columns after `columns`, whose values are now `made`."""
    errors = w.new_empty(w.shape[0], columns.stop - columns.start)
    for i, j in enumerate(range(columns.start, columns.stop)):
        errors[:, i] = (w[:, j] - made[:, j]) / factor[j, j]
        w[:, j + 1 : columns.stop].addr_(errors[:, i], factor[j, j + 1 : columns.stop], alpha=-1)
    w[:, columns.stop :].addmm_(errors, factor[columns, columns.stop :], alpha=-1)
