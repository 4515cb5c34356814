# SPDX-License-Identifier: Apache-2.0
"""What a layer is going to be, before it has integers: the tree of dlqat.folded with specs where it has codes, and numbers of
clusters where it has labels.

    Spec = LayerSpec                        one weight on one grid
         | Pruned(kept, among, spec)        the same, at most `kept` of every `among` neighbouring inputs not zero

A compression method plans first and works later, so that sizes can be told, and shapes refused, before any work.
Paths are those of folded.leaves: `q_proj.1.left` is the left factor of the second part of q_proj.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

from dlqat import atomic, json_file, tree
from dlqat.grid import as_json
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal
from dlqat.tree import Clustered, LowRank, Sum, Tree

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


Spec = LayerSpec | Pruned
Node = Tree[Spec, int]
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
        case LowRank(left, right, int(rank)):
            yield from leaves(left, f"{path}.left", (shape[0], rank), own=True)
            yield from leaves(right, f"{path}.right", (rank, shape[1]), own=True)
        case Clustered(centroids, clusters):
            yield from leaves(centroids, f"{path}.centroids", (clusters, shape[1]), own=True)
        case Sum(parts):
            for i, part in enumerate(parts):
                yield from leaves(part, f"{path}.{i}", shape, own)
        case Pruned(_, _, spec):
            yield Leaf(path, spec, shape, own, pruned=True)
        case _:
            assert isinstance(node, LayerSpec)
            yield Leaf(path, node, shape, own)


def bits(node: Node, shape: Shape) -> float:
    """Bits that the layer takes in memory: codes, 16-bit scales, zero-points, labels of ceil(log2 k) bits."""
    total = 0.0
    for leaf in leaves(node, "", shape):
        out, inputs = leaf.shape
        groups = out * leaf.spec.grid.groups(inputs)
        grid = leaf.spec.grid.folded
        total += grid.bits * out * inputs + groups * (SCALE_BITS + (0 if grid.symmetric else grid.bits))
    return total + sum(shape[0] * ceil(log2(max(2, clusters))) for _, clusters in tree.labels(node))


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
    def leaf(spec: Spec) -> dict[str, Any]:
        match spec:
            case LayerSpec():
                return {"kind": "quantized", **as_json(spec)}
            case Pruned(kept, among, inner):
                return {"kind": "pruned", "kept": kept, "among": among, "spec": as_json(inner)}

    return tree.to_json(node, leaf, lambda clusters: {"clusters": clusters})


def from_json(values: Mapping[str, Any], where: str) -> dict[str, Node]:
    """Refusal, naming `where`, for what is no plan."""
    return {
        name: _from_json(node, f"{where} holds no plan that this dlqat reads: {name}") for name, node in values.items()
    }


def _from_json(node: Any, where: str) -> Node:
    def spec(fields: Any) -> LayerSpec:
        return json_file.exactly(fields, LayerSpec, where, "; train again")

    def leaf(fields: Mapping[str, Any], path: str) -> Spec:
        match fields:
            case {"kind": "quantized", **rest}:
                return spec(rest)
            case {"kind": "pruned", "kept": int(kept), "among": int(among), "spec": rest} if 0 < kept <= among:
                return Pruned(kept, among, spec(rest))
            case _:
                raise Refusal(f"{path}: {str(fields)[:80]}; train again")

    def number(field: str) -> tree.Read[int]:
        def read(fields: Mapping[str, Any], path: str) -> int:
            if type(found := fields.get(field)) is not int or found < 1:
                raise Refusal(f"{path}: {field} = {found!r} is not a number of 1 or more; train again")
            return found

        return read

    return tree.from_json(node, where, leaf, number("clusters"), number("rank"))
