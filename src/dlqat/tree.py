# SPDX-License-Identifier: Apache-2.0
"""The shapes that a layer can have, whatever stands in its leaves.

    Tree[L, N] = L                                one weight on one grid
               | LowRank(left, right, rank)       left @ right          [out, rank] @ [rank, in]
               | Clustered(centroids, labels)     centroids[labels]     rows that share a centroid
               | Sum(parts)                       parts of equal shape, added up

Two trees are made of it, and one follows the other: dlqat.plan (L: specs, N: numbers of clusters), which says what a layer is
going to be, and dlqat.folded (L: integers, N: label vectors), which is what it became. A path tells where a part stands:
`q_proj.1.left` is the left factor of the second part of q_proj.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, Union, cast

from dlqat.refusal import Refusal

L = TypeVar("L")
N = TypeVar("N")
M = TypeVar("M")
K = TypeVar("K")


@dataclass(frozen=True)
class LowRank(Generic[L, N]):
    """left @ right, never multiplied out: y = left (right x)."""

    left: Tree[L, N]
    right: Tree[L, N]
    rank: int | None = None
    """Where the leaves do not tell (a plan)."""


@dataclass(frozen=True)
class Clustered(Generic[L, N]):
    """Row o is centroids[labels[o]]: y = gather(centroids x, labels)."""

    centroids: Tree[L, N]
    labels: N


@dataclass(frozen=True)
class Sum(Generic[L, N]):
    """The sum of parts of equal shape."""

    parts: tuple[Tree[L, N], ...]


Tree = Union[L, LowRank[L, N], Clustered[L, N], Sum[L, N]]  # noqa: UP007 a TypeVar has no |


def children(tree: Tree[L, N], path: str) -> list[tuple[str, Tree[L, N]]]:
    """(path, part) of what a node is made of; none of a leaf."""
    match tree:
        case LowRank(left, right):
            return [(f"{path}.left", left), (f"{path}.right", right)]
        case Clustered(centroids):
            return [(f"{path}.centroids", centroids)]
        case Sum(parts):
            return [(f"{path}.{i}", part) for i, part in enumerate(parts)]
        case _:
            return []


def leaves(tree: Tree[L, N], path: str = "") -> Iterator[tuple[str, L]]:
    """Every leaf, with its path."""
    parts = children(tree, path)
    for inner, part in parts:
        yield from leaves(part, inner)
    if not parts:
        yield path, cast("L", tree)


def labels(tree: Tree[L, N], path: str = "") -> Iterator[tuple[str, N]]:
    """What every clustered part says of its labels, with their path (`PATH.labels`)."""
    if isinstance(tree, Clustered):
        yield f"{path}.labels", cast("N", tree.labels)
    for inner, part in children(tree, path):
        yield from labels(part, inner)


def mapped(tree: Tree[L, N], path: str, leaf: Callable[[str], M], labels: Callable[[str], K]) -> Tree[M, K]:
    """The tree of the same shape, from its leaves and labels by path."""
    match tree:
        case LowRank(left, right):
            return LowRank(mapped(left, f"{path}.left", leaf, labels), mapped(right, f"{path}.right", leaf, labels))
        case Clustered(centroids):
            return Clustered(mapped(centroids, f"{path}.centroids", leaf, labels), labels(f"{path}.labels"))
        case Sum(parts):
            return Sum(tuple(mapped(part, f"{path}.{i}", leaf, labels) for i, part in enumerate(parts)))
        case _:
            return leaf(path)


def to_json(
    tree: Tree[L, N], leaf: Callable[[L], dict[str, Any]], labels: Callable[[N], dict[str, Any]]
) -> dict[str, Any]:
    """As JSON values; `from_json` reads them back. `leaf` and `labels` give the fields that theirs have."""
    match tree:
        case LowRank(left, right, rank):
            own = {} if rank is None else {"rank": rank}
            return {
                "kind": "low_rank",
                **own,
                "left": to_json(left, leaf, labels),
                "right": to_json(right, leaf, labels),
            }
        case Clustered(centroids, ids):
            return {"kind": "clustered", **labels(ids), "centroids": to_json(centroids, leaf, labels)}
        case Sum(parts):
            return {"kind": "sum", "parts": [to_json(part, leaf, labels) for part in parts]}
        case _:
            return leaf(cast("L", tree))


Read = Callable[[Mapping[str, Any], str], M]
"""From the fields of a node, and its path."""


def from_json(value: Any, path: str, leaf: Read[L], labels: Read[N], rank: Read[int | None]) -> Tree[L, N]:
    """Refusal, naming the path, for what is no such tree; `leaf` refuses the kinds that it does not know."""
    match value:
        case {"kind": "low_rank", "left": left, "right": right}:
            parts = (from_json(x, f"{path}.{n}", leaf, labels, rank) for n, x in (("left", left), ("right", right)))
            return LowRank(*parts, rank=rank(value, path))
        case {"kind": "clustered", "centroids": centroids}:
            return Clustered(from_json(centroids, f"{path}.centroids", leaf, labels, rank), labels(value, path))
        case {"kind": "sum", "parts": list(parts)}:
            return Sum(tuple(from_json(x, f"{path}.{i}", leaf, labels, rank) for i, x in enumerate(parts)))
        case {"kind": "low_rank" | "clustered" | "sum" as kind}:
            raise Refusal(f"{path}: layer kind {kind!r} is incomplete")
        case {"kind": str()}:
            return leaf(value, path)
        case _:
            raise Refusal(f"{path}: {str(value)[:80]} is no layer that this dlqat knows")
