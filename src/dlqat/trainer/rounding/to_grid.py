# SPDX-License-Identifier: Apache-2.0
"""Put one weight on its grid: to nearest (mse), or with GPTQ's compensation.

What comes back is where training would start and what folding gives when there is none: the base weight stays
what it is, and `offset` leads from it to where the method wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlqat.adapter import Adapter, fold
from dlqat.folded import dense
from dlqat.plan import Spec
from dlqat.recipe import LayerSpec
from dlqat.trainer.rounding.gptq import Swept, compensate
from dlqat.trainer.rounding.offset import offset
from dlqat.trainer.rounding.search import search
from dlqat.tree import LowRank

ROUNDINGS = ("mse", "gptq")


@dataclass(frozen=True, eq=False)
class Rounded:
    """A leaf: the weight that it stands on and the tensors that make it."""

    spec: LayerSpec
    weight: Tensor
    scales: Tensor
    zero_points: Tensor | None = None
    offset: Tensor | None = None
    mask: Tensor | None = None

    def dense(self) -> Tensor:
        """The weight that the leaf means, float32."""
        adapter = Adapter(self.spec.grid, self.scales, self.zero_points, offset=self.offset, mask=self.mask)
        return dense(fold(self.weight, adapter))

    def tensors(self, path: str, own: bool = False) -> dict[str, Tensor]:
        """By name. own: the leaf's weight is not the module's, so it is stored too."""
        fields = {"scales": self.scales, "zero_points": self.zero_points, "offset": self.offset, "mask": self.mask}
        fields["weight"] = self.weight if own else None
        return {f"{path}.{field}": tensor for field, tensor in fields.items() if tensor is not None}


def to_grid(weight: Tensor, spec: LayerSpec, rounding: str, moments: Tensor | None) -> Rounded:
    """weight [out, in] on the grid of `spec`. moments [in, in]: X^T X, for gptq."""
    if rounding == "mse" or moments is None:
        return Rounded(spec, weight, *search(weight, spec.grid))
    made, scales, zero_points = compensate(weight, moments, spec.grid)
    return from_sweep(weight, spec, Swept(made, scales, zero_points, None))


def from_sweep(weight: Tensor, spec: LayerSpec, swept: Swept) -> Rounded:
    """What a sweep (gptq.py) found, as a start from `weight`."""
    base = weight if swept.mask is None else weight * swept.mask  # a pruned weight needs no way to zero
    way = offset(swept.made, base, swept.scales, swept.zero_points, spec.grid)
    return Rounded(spec, weight, swept.scales, swept.zero_points, way, swept.mask)


def factors(
    left: Tensor, right: Tensor, node: LowRank[Spec, int], path: str, rounding: str, moments: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """The two factors on their grids, and the weight that they mean.

    What the left factor reads is what the rounded right one gives: its second moments are R H R^T.
    """
    assert isinstance(node.right, LayerSpec) and isinstance(node.left, LayerSpec)
    second = to_grid(right.contiguous(), node.right, rounding, moments)
    r = second.dense()
    inner = None if moments is None else r @ moments.float() @ r.T
    first = to_grid(left.contiguous(), node.left, rounding, inner)
    tensors = {**first.tensors(f"{path}.left", own=True), **second.tensors(f"{path}.right", own=True)}
    return tensors, first.dense() @ r


def split(u: Tensor, s: Tensor, v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U_r sqrt(S_r) and sqrt(S_r) V_r^T of a singular value decomposition, float64 in, float64 out."""
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V^T in float64."""
    found = torch.linalg.svd(matrix.double(), full_matrices=False)
    return found.U, found.S, found.Vh
