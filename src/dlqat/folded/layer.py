# SPDX-License-Identifier: Apache-2.0
"""What a folded layer can be: a tree (dlqat.tree) of integers, with labels int32 [out].

The four kinds carry every method of the road (DL-QAT, GPTQ, CASP, SWSC, N:M) to every target: an exporter's
`linear` takes this union and nothing else. `dense` is the reference: the weight that the layer means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlqat.grid import Grid, dequantize
from dlqat.tree import Clustered, LowRank, Sum, Tree, labels, leaves


@dataclass(frozen=True, eq=False)
class Quantized:
    """codes int8 [out, in], scales float32 [out, groups], zero_points int8 [out, groups] or None."""

    grid: Grid
    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None = None


Folded = Tree[Quantized, Tensor]


def shape(folded: Folded) -> tuple[int, int]:
    """(out, in) of the weight that `folded` means."""
    match folded:
        case Quantized(codes=codes):
            return codes.shape[0], codes.shape[1]
        case LowRank(left, right):
            return shape(left)[0], shape(right)[1]
        case Clustered(centroids, labels):
            return labels.shape[0], shape(centroids)[1]
        case Sum(parts):
            return shape(parts[0])


def rows(leaf: Quantized, block: slice) -> Quantized:
    """Some rows of a leaf (views)."""
    zero_points = None if leaf.zero_points is None else leaf.zero_points[block]
    return Quantized(leaf.grid, leaf.codes[block], leaf.scales[block], zero_points)


def dense(folded: Folded) -> Tensor:
    """The weight float32 [out, in]: the definition that every artifact is measured against."""
    match folded:
        case Quantized(_, codes, scales, zero_points):
            return dequantize(codes, scales, zero_points)
        case LowRank(left, right):
            return dense(left) @ dense(right)
        case Clustered(centroids, labels):
            return dense(centroids)[labels.long()]
        case Sum(parts):
            return torch.stack([dense(p) for p in parts]).sum(0)


def check(folded: Folded, name: str) -> str | None:
    """What is wrong with the numbers of `folded`, naming the leaf; None if all is well."""
    for path, leaf in leaves(folded, name):
        if (reason := _check_leaf(leaf)) is not None:
            return f"{path}: {reason}"
    for path, ids in labels(folded, name):
        if ids.numel() and int(ids.min()) < 0:
            return f"{path}: a label is negative"
    return None


def _check_leaf(leaf: Quantized) -> str | None:
    out, inputs = leaf.codes.shape
    if (reason := leaf.grid.refuses(inputs)) is not None:
        return reason
    groups = (out, leaf.grid.groups(inputs))
    if tuple(leaf.scales.shape) != groups:
        return f"scales have shape {tuple(leaf.scales.shape)}, its grid needs {groups}"
    least, most = map(float, torch.aminmax(leaf.scales.detach()))
    if not (math.isfinite(least) and math.isfinite(most)):
        return "a scale is NaN or infinite"
    if least <= 0:
        return "a scale is not positive"
    if leaf.grid.symmetric != (leaf.zero_points is None):
        return "zero-points and the grid's symmetry disagree"
    for what, ints in (("code", leaf.codes), ("zero-point", leaf.zero_points)):
        if ints is not None and ints.numel():
            low, high = map(int, torch.aminmax(ints))
            if low < leaf.grid.qmin or high > leaf.grid.qmax:
                return f"a {what} lies outside {leaf.grid.qmin}..{leaf.grid.qmax}"
    return None
