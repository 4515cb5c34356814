# SPDX-License-Identifier: Apache-2.0
"""A linear made of parts, in training: the nodes of dlqat.plan as modules.

Every leaf is a QATLinear like any other, so LoRA and magnitudes train factors and centroids too. Nothing is
multiplied out: y = left(right(x)), y = take(centroids(x), labels), y = part(x) + part(x). The outermost module
keeps the float weight and the bias of the layer that it replaces: switched off, it is the teacher.

Modules are named by the paths of the plan (q_proj.1.left), so their tensors are named as those of every leaf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlqat.adapter import need
from dlqat.plan import Node, Pruned
from dlqat.recipe import LayerSpec
from dlqat.trainer.layers.qat import QATLinear, Switched
from dlqat.tree import Clustered, LowRank, Sum


class CompoundLinear(Switched):
    """What the three kinds share: the float layer behind them, if they are outermost."""

    def __init__(self, base: nn.Linear | None) -> None:
        super().__init__()
        self.weight = None if base is None else base.weight.requires_grad_(False)
        bias = None if base is None else cast("nn.Parameter | None", base.bias)
        self.bias = None if bias is None else bias.requires_grad_(False)

    def product(self, x: Tensor) -> Tensor:
        """x times the weight that the parts mean, transposed."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantized and self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class LowRankLinear(CompoundLinear):
    def __init__(self, base: nn.Linear | None, left: nn.Module, right: nn.Module) -> None:
        super().__init__(base)
        self.left, self.right = left, right

    def product(self, x: Tensor) -> Tensor:
        return self.left(self.right(x))


class ClusteredLinear(CompoundLinear):
    def __init__(self, base: nn.Linear | None, centroids: nn.Module, labels: Tensor) -> None:
        super().__init__(base)
        self.centroids = centroids
        self.labels: Tensor
        self.register_buffer("labels", labels)

    def product(self, x: Tensor) -> Tensor:
        return self.centroids(x).index_select(-1, self.labels)


class SumLinear(CompoundLinear):
    def __init__(self, base: nn.Linear | None, parts: list[nn.Module]) -> None:
        super().__init__(base)
        for i, part in enumerate(parts):
            self.add_module(str(i), part)

    def product(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.children()]).sum(0)


def module(node: Node, path: str, linear: nn.Linear, tensors: Mapping[str, Tensor]) -> nn.Module:
    """What `node` makes of `linear`, from the tensors of an adapter file (by path): scales, zero_points, offset,
    mask and, of leaves with a weight of their own, weight; labels. LoRA starts anew where it is not among them."""
    return _module(node, path, linear, linear, tensors)


def _module(
    node: Node, path: str, linear: nn.Linear, base: nn.Linear | None, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """base: the layer to switch to, for the outermost module only."""
    match node:
        case LowRank(left, right):
            parts = (_module(n, f"{path}.{s}", linear, None, tensors) for n, s in ((left, "left"), (right, "right")))
            return LowRankLinear(base, *parts)
        case Clustered(centroids):
            inner = _module(centroids, f"{path}.centroids", linear, None, tensors)
            return ClusteredLinear(base, inner, need(tensors, f"{path}.labels"))
        case Sum(nodes):
            return SumLinear(base, [_module(n, f"{path}.{i}", linear, None, tensors) for i, n in enumerate(nodes)])
        case _:
            return _leaf(node.spec if isinstance(node, Pruned) else node, path, linear, base, tensors)


def _leaf(
    spec: LayerSpec, path: str, linear: nn.Linear, base: nn.Linear | None, tensors: Mapping[str, Tensor]
) -> QATLinear:
    own = base or _bare(tensors.get(f"{path}.weight", linear.weight))
    rest = (tensors.get(f"{path}.{field}") for field in ("zero_points", "offset", "mask"))
    return QATLinear(own, spec, need(tensors, f"{path}.scales"), *rest)


def _bare(weight: Tensor) -> nn.Linear:
    """A linear without a bias on a weight that exists."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    return linear
