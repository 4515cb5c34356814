# SPDX-License-Identifier: Apache-2.0
"""N:M pruning with quantization: at most `n` of every `m` neighbouring inputs of a row are not zero.

    obs     SparseGPT (arXiv 2301.00774) and GPTQ in one sweep: score w^2 / [H^-1]_jj, errors spread over what is left
    wanda   Wanda (arXiv 2306.11695): score |w| |x_j|, nothing is moved; rounded on the scales of least error
    ternary PBS2P's progressive pruning (arXiv 2502.01705) in a form that integers hold (ternary.py)

`spread` keeps fewer weights in blocks of little influence and more in those of much, n on average: PBS2P's coarse
stage, for any score. `low_rank` adds SLiM's correction (arXiv 2410.09615): the SVD of what pruning and rounding took,
each input weighed by its root mean square, as two small linears beside the pruned one.

Zeros are codes. They cost the bits of any other code unless the target has a sparse storage (Core ML).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlqat.plan import Node, Plan, Pruned, Shape
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal
from dlqat.trainer.methods import shapes as fit
from dlqat.trainer.methods.allocation import counts
from dlqat.trainer.methods.ternary import ternary
from dlqat.trainer.rounding.gptq import BLOCK, Pattern, Swept, sweep
from dlqat.trainer.rounding.search import search
from dlqat.trainer.rounding.to_grid import Rounded, factors, from_sweep, split, svd
from dlqat.tree import LowRank, Sum

SCORES = ("obs", "wanda", "ternary")


@dataclass(frozen=True, slots=True)
class Nm:
    """N:M pruning: `n` weights of every `m` stay."""

    n: int = 2
    m: int = 4
    score: str = "obs"
    """obs | wanda | ternary."""
    low_rank: float = 0.0
    """Rank of the correction as a share of the smaller side; 0: none."""
    spread: int = 0
    """Blocks keep n - spread to n + spread of every m, by their influence."""

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m <= BLOCK:
            raise ValueError(f"n = {self.n}, m = {self.m}: 0 < n < m <= {BLOCK}")
        if self.score not in SCORES:
            raise ValueError(f"score = {self.score} is not one of {', '.join(SCORES)}")
        if not 0 <= self.low_rank < 1:
            raise ValueError(f"low_rank = {self.low_rank} is a share between 0 and 1")
        if not 0 <= self.spread <= min(self.n - 1, self.m - self.n):
            raise ValueError(f"spread = {self.spread}: n - spread is 1 or more, n + spread m or less")

    @property
    def calibrated(self) -> bool:
        return True

    @property
    def influenced(self) -> bool:
        return self.spread > 0

    def plan(self, specs: Mapping[str, LayerSpec], shapes: Mapping[str, Shape], influence: Sequence[float]) -> Plan:
        for name, spec in specs.items():
            if (reason := self._refuses(spec, shapes[name][1])) is not None:
                raise Refusal(f"{name}: nm {self.n}:{self.m}: {reason}")
        count = counts(influence, self.n, self.spread) if self.spread else []
        return {
            name: self._node(spec, shapes[name], count[fit.block(name)] if count else self.n)
            for name, spec in specs.items()
        }

    def _refuses(self, spec: LayerSpec, inputs: int) -> str | None:
        size = spec.group_size or inputs
        if size % self.m:
            return f"{self.m} does not divide the {size} inputs of a group"
        if self.score == "ternary" and (spec.bits != 2 or not spec.symmetric):
            return f"ternary codes are symmetric 2-bit codes; the recipe says {spec.grid}"
        return None

    def _node(self, spec: LayerSpec, shape: Shape, count: int) -> Node:
        pruned = Pruned(count, self.m, spec)
        if not self.low_rank:
            return pruned
        return Sum((pruned, fit.low_rank(fit.rank(self.low_rank * min(shape), shape, spec), spec, spec)))

    def make(self, path: str, node: Node, weight: Tensor, moments: Tensor | None) -> dict[str, Tensor]:
        assert moments is not None
        match node:
            case Sum((Pruned() as first, LowRank(rank=int(rank)) as correction)):
                pruned = self._pruned(first, weight, moments)
                left, right = saliency_svd(weight - pruned.dense(), moments, rank)
                more, _ = factors(left.float(), right.float(), correction, f"{path}.1", "gptq", moments)
                return {**pruned.tensors(f"{path}.0"), **more}
            case _:
                assert isinstance(node, Pruned)
                return self._pruned(node, weight, moments).tensors(path)

    def _pruned(self, node: Pruned, weight: Tensor, moments: Tensor) -> Rounded:
        pattern, spec = Pattern(node.kept, node.among), node.spec
        match self.score:
            case "obs":
                swept = sweep(weight, moments, spec.grid, pattern)
            case "wanda":
                mask = pattern.mask(wanda(weight, moments))
                swept = Swept(weight * mask, *search(weight * mask, spec.grid, moments.diagonal()), mask)
            case _:
                swept = ternary(weight, moments, spec.grid, pattern)
        return from_sweep(weight, spec, swept)

    def paper_bits(self, node: Node, shape: Shape) -> float:
        """As PBS2P counts: the bits of the codes that stay; no masks, no scales."""
        match node:
            case Pruned(count, among, spec):
                return spec.bits * count / among
            case LowRank(LayerSpec(bits=left), LayerSpec(bits=right), int(rank)):
                return rank * (left / shape[1] + right / shape[0])
            case Sum(parts):
                return sum(self.paper_bits(part, shape) for part in parts)
            case _:
                raise AssertionError(node)


def wanda(weight: Tensor, moments: Tensor) -> Tensor:
    """|w_ij| |X_j|_2: the scores [out, in]."""
    return weight.abs() * moments.diagonal().sqrt()


def saliency_svd(error: Tensor, moments: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left, right float64: the best rank-r fit of error [out, in], input j weighed by |X_j|_2 (SLiM's form)."""
    weights = moments.diagonal().double().sqrt()
    weights = weights.clamp(min=max(1e-6 * float(weights.max()), 1e-30))
    left, right = split(*svd(error.double() * weights), rank)
    return left, right / weights


def holds(mask: Tensor, n: int, m: int) -> bool:
    """Whether at most n of every m neighbouring inputs of mask bool [out, in] are kept."""
    return bool((torch.as_tensor(mask).view(mask.shape[0], -1, m).sum(-1) <= n).all())
