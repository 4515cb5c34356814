# SPDX-License-Identifier: Apache-2.0
"""What a layer is going to be, before it has integers: the union of dlqat.folded with specs where it has codes.

    Node = LayerSpec                        one weight on one grid
         | Pruned(kept, among, spec)        the same, at most `kept` of every `among` neighbouring inputs not zero
         | Factors(rank, left, right)       becomes LowRank
         | Shared(clusters, centroids)      becomes Clustered
         | Parts(parts)                     becomes Sum

A compression method plans first and works later, so that sizes can be told, and shapes refused, before any work.
Paths are those of folded.leaves: `q_proj.1.left` is the left factor of the second part of q_proj.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

from torch import Tensor

from dlqat import atomic, json_file
from dlqat.folded import Clustered, Folded, LowRank, Quantized, Sum
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal

FILE = "plan.json"
"""In model_dir, where a method makes more of a linear than one grid."""

SCALE_BITS = 16
"""A snapped scale is a number of fp16 and of bf16."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """One weight on one grid, with zeros: N:M."""

    kept: int
    among: int
    spec: LayerSpec


@dataclass(frozen=True, slots=True)
class Factors:
    """left [out, rank] @ right [rank, in]."""

    rank: int
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Shared:
    """`clusters` centroid rows [clusters, in], and one label a row of the weight."""

    clusters: int
    centroids: Node


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of the layer's own shape that are added up."""

    parts: tuple[Node, ...]


Node = LayerSpec | Pruned | Factors | Shared | Parts
Plan = Mapping[str, Node]
"""Module name -> node."""
Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One weight on one grid."""

    path: str
    spec: LayerSpec
    shape: Shape
    own: bool
    """A factor or centroids: it stands on a weight of its own, not on the module's."""
    pruned: bool = False


def leaves(node: Node, path: str, shape: Shape, own: bool = False) -> Iterator[Leaf]:
    """Every leaf of a node that stands at `path` and means a weight of `shape`."""
    match node:
        case LayerSpec():
            yield Leaf(path, node, shape, own)
        case Pruned(_, _, spec):
            yield Leaf(path, spec, shape, own, pruned=True)
        case Factors(rank, left, right):
            yield from leaves(left, f"{path}.left", (shape[0], rank), own=True)
            yield from leaves(right, f"{path}.right", (rank, shape[1]), own=True)
        case Shared(clusters, centroids):
            yield from leaves(centroids, f"{path}.centroids", (clusters, shape[1]), own=True)
        case Parts(parts):
            for i, part in enumerate(parts):
                yield from leaves(part, f"{path}.{i}", shape, own)


def labels(node: Node, path: str) -> Iterator[tuple[str, int]]:
    """(path of the labels, number of clusters) of every clustered part."""
    match node:
        case LayerSpec() | Pruned():
            return
        case Factors(_, left, right):
            yield from labels(left, f"{path}.left")
            yield from labels(right, f"{path}.right")
        case Shared(clusters, centroids):
            yield f"{path}.labels", clusters
            yield from labels(centroids, f"{path}.centroids")
        case Parts(parts):
            for i, part in enumerate(parts):
                yield from labels(part, f"{path}.{i}")


def fold(node: Node, path: str, leaf: Callable[[str], Quantized], labels: Callable[[str], Tensor]) -> Folded:
    """The folded layer of a node, from its leaves and labels by path."""
    match node:
        case LayerSpec() | Pruned():
            return leaf(path)
        case Factors(_, left, right):
            return LowRank(fold(left, f"{path}.left", leaf, labels), fold(right, f"{path}.right", leaf, labels))
        case Shared(_, centroids):
            return Clustered(fold(centroids, f"{path}.centroids", leaf, labels), labels(f"{path}.labels"))
        case Parts(parts):
            return Sum(tuple(fold(part, f"{path}.{i}", leaf, labels) for i, part in enumerate(parts)))


def bits(node: Node, shape: Shape) -> float:
    """Bits that the layer takes in memory: codes, 16-bit scales, zero-points, labels of ceil(log2 k) bits."""
    total = 0.0
    for leaf in leaves(node, "", shape):
        out, inputs = leaf.shape
        groups = out * leaf.spec.grid.groups(inputs)
        grid = leaf.spec.grid.folded
        total += grid.bits * out * inputs + groups * (SCALE_BITS + (0 if grid.symmetric else grid.bits))
    return total + sum(shape[0] * ceil(log2(max(2, clusters))) for _, clusters in labels(node, ""))


def check(plan: Plan, shapes: Mapping[str, Shape]) -> None:
    """Refusal naming a leaf whose shape its grid refuses."""
    for name, node in plan.items():
        for leaf in leaves(node, name, shapes[name]):
            if (reason := leaf.spec.grid.refuses(leaf.shape[1])) is not None:
                raise Refusal(f"{leaf.path}: {reason}")


def write(plan: Plan, folder: Path) -> None:
    """To folder/plan.json, atomically."""
    atomic.text(folder / FILE, json.dumps(to_json(plan), indent=1) + "\n")


def read(folder: Path) -> dict[str, Node]:
    """Of folder/plan.json. Refusal if it is none."""
    path = folder / FILE
    return from_json(json_file.read(path, "; train again"), str(path))


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values; `from_json` reads them back."""
    return {name: _to_json(node) for name, node in plan.items()}


def _to_json(node: Node) -> dict[str, Any]:
    match node:
        case LayerSpec():
            return {"kind": "quantized", **asdict(node)}
        case Pruned(kept, among, spec):
            return {"kind": "pruned", "kept": kept, "among": among, "spec": asdict(spec)}
        case Factors(rank, left, right):
            return {"kind": "low_rank", "rank": rank, "left": _to_json(left), "right": _to_json(right)}
        case Shared(clusters, centroids):
            return {"kind": "clustered", "clusters": clusters, "centroids": _to_json(centroids)}
        case Parts(parts):
            return {"kind": "sum", "parts": [_to_json(part) for part in parts]}


def from_json(values: Mapping[str, Any], where: str) -> dict[str, Node]:
    """Refusal, naming `where`, for what is no plan."""
    return {
        name: _from_json(node, f"{where} holds no plan that this dlqat reads: {name}") for name, node in values.items()
    }


def _from_json(node: Any, where: str) -> Node:
    def spec(fields: Any) -> LayerSpec:
        return json_file.exactly(fields, LayerSpec, where, "; train again")

    match node:
        case {"kind": "quantized", **fields}:
            return spec(fields)
        case {"kind": "pruned", "kept": int(kept), "among": int(among), "spec": fields} if 0 < kept <= among:
            return Pruned(kept, among, spec(fields))
        case {"kind": "low_rank", "rank": int(rank), "left": left, "right": right} if rank > 0:
            return Factors(rank, _from_json(left, where), _from_json(right, where))
        case {"kind": "clustered", "clusters": int(clusters), "centroids": centroids} if clusters > 0:
            return Shared(clusters, _from_json(centroids, where))
        case {"kind": "sum", "parts": list(parts)}:
            return Parts(tuple(_from_json(part, where) for part in parts))
        case _:
            raise Refusal(f"{where}: {str(node)[:80]}; train again")
