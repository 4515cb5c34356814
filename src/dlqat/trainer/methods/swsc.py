# SPDX-License-Identifier: Apache-2.0
"""SWSC, Shared Weight for Similar Channel (arXiv 2501.08631): rows that share a mean, plus a low-rank correction.

    W ~ R[labels] + A B        R: k mean rows (k-means), A B: rank-r SVD of what they leave

It is never expanded: y = take(R x, labels) + A (B x), (k + 2r) / m of the multiplications of an m x m layer. The
paper stores R, A and B in fp16 and counts 16 (k + 2r) / m + log2(k) / m bits; here they lie on the recipe's grid.
The correction is taken of what the *rounded* means leave, so it repairs their rounding too.

Rows, not columns: the rows of a weight are its output channels, and sharing them is a gather of outputs that every
runtime has. Query and key projections only, as in the paper; other linears are rounded (`rounding`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2

from torch import Tensor

from dlqat.plan import Factors, Node, Parts, Plan, Shape, Shared
from dlqat.recipe import LayerSpec, matches
from dlqat.trainer.methods import shapes as fit
from dlqat.trainer.methods.kmeans import kmeans
from dlqat.trainer.methods.rounding import ROUNDINGS, factors, split, svd, to_grid

QUERIES_AND_KEYS = r".*\.(q|k)_proj"


@dataclass(frozen=True, slots=True)
class Swsc:
    """Channels that share their mean, and a low-rank correction of the error."""

    clusters: float = 0.25
    """Mean rows, as a share of the rows."""
    rank: float = 0.125
    """Of the correction, as a share of the smaller side; 0: none."""
    layers: str = QUERIES_AND_KEYS
    """Regex: the linears that are treated."""
    rounding: str = "mse"
    """mse | gptq: of means, factors and all other linears."""

    def __post_init__(self) -> None:
        if not 0 < self.clusters < 1 or not 0 <= self.rank < 1:
            raise ValueError(f"clusters = {self.clusters} and rank = {self.rank} are shares between 0 and 1")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding = {self.rounding} is not one of {', '.join(ROUNDINGS)}")
        re.compile(self.layers)

    @property
    def calibrated(self) -> bool:
        return self.rounding == "gptq"

    @property
    def influenced(self) -> bool:
        return False

    def plan(self, specs: Mapping[str, LayerSpec], shapes: Mapping[str, Shape], influence: Sequence[float]) -> Plan:
        return {n: self._node(s, shapes[n]) if matches(self.layers, n) else s for n, s in specs.items()}

    def _node(self, spec: LayerSpec, shape: Shape) -> Node:
        shared = Shared(max(2, round(self.clusters * shape[0])), spec)
        if not self.rank:
            return shared
        return Parts((shared, fit.low_rank(fit.rank(self.rank * min(shape), shape, spec), spec, spec)))

    def make(self, path: str, node: Node, weight: Tensor, moments: Tensor | None) -> dict[str, Tensor]:
        match node:
            case Parts((Shared() as shared, Factors() as correction)):
                tensors, meant = self._shared(shared, f"{path}.0", weight, moments)
                left, right = split(*svd(weight.float() - meant), correction.rank)
                more, _ = factors(left.float(), right.float(), correction, f"{path}.1", self.rounding, moments)
                return {**tensors, **more}
            case Shared():
                return self._shared(node, path, weight, moments)[0]
            case _:
                assert isinstance(node, LayerSpec)
                return to_grid(weight, node, self.rounding, moments).tensors(path)

    def _shared(
        self, node: Shared, path: str, weight: Tensor, moments: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        assert isinstance(node.centroids, LayerSpec)
        means, labels = kmeans(weight, node.clusters)
        rounded = to_grid(means, node.centroids, self.rounding, moments)
        tensors = {f"{path}.labels": labels.int(), **rounded.tensors(f"{path}.centroids", own=True)}
        return tensors, rounded.dense()[labels]

    def paper_bits(self, node: Node, shape: Shape) -> float:
        """16 (k / out + r (out + in) / (out in)) + ceil(log2 k) / in: the paper's formula for any shape."""
        out, inputs = shape
        match node:
            case LayerSpec():
                return node.bits
            case Shared(clusters, _):
                return 16 * clusters / out + ceil(log2(clusters)) / inputs
            case Factors(rank, _, _):
                return 16 * rank * (out + inputs) / (out * inputs)
            case Parts(parts):
                return sum(self.paper_bits(part, shape) for part in parts)
            case _:
                raise AssertionError(node)
