# SPDX-License-Identifier: Apache-2.0
"""A forward as an expression: what a program computes, read back from its operations, whatever they are called there.

    ids                              the tokens of the step
    embed NAME (ids)                 rows of an embedding
    linear NAME (x)                  a product with a leaf, its bias added if it has one
    part FIRST:END (x)               some of a product's columns: of a linear that is several
    take NAME (x)                    columns picked by the labels of a clustered layer
    norm NAME (x)                    RMSNorm with the gain NAME.weight; of heads where the gain is that long
    rope NAME (x)                    rotary positions of this step, by the rope of that name
    cap NAME (x)                     c tanh(x / c), c stored as NAME.limit
    scale NAME (x)                   times the number that is stored as NAME.factor
    attention LAYER HEADS/HEADS (q, k, v)     causal, over the cache of that layer
    select (x)                       the positions whose logits are wanted
    silu (x), gelu (x), sigmoid (x), add (a, b), mul (a, b)

Readers build one from the artifact, `check/wanted_forward.py` one from folded/ and config.json; they must be the same. So an
operation that changes numbers and that config.json does not explain cannot hide: a product with 1.01, a second norm, a
residual taken from another place. Integers, gains and facts are compared apart from this, by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

COMMUTATIVE = {"add", "mul"}


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. Equal digests mean equal expressions; `rows` and `biased` are compared where they stand."""

    kind: str
    label: str = ""
    inputs: tuple[Node, ...] = ()
    rows: int | None = None
    """Of a linear: its outputs, where the reader knows them from how they are parted."""
    biased: bool = False
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        given = [x.digest for x in self.inputs]
        if self.kind in COMMUTATIVE:
            given.sort()
        digest = hashlib.blake2b(f"{self.kind}\0{self.label}\0".encode() + b"".join(given), digest_size=16)
        object.__setattr__(self, "digest", digest.digest())

    def __str__(self) -> str:
        return f"{self.kind} {self.label}".strip()


def times(a: Node, b: Node) -> Node:
    """a * b; of a number and its own sigmoid: silu."""
    for x, gate in ((a, b), (b, a)):
        if gate.kind == "sigmoid" and gate.inputs[0].digest == x.digest:
            return Node("silu", "", (x,))
    return Node("mul", "", (a, b))


def parted(x: Node, sizes: Sequence[int]) -> list[Node]:
    """x cut into parts of these sizes."""
    ends = list(accumulate(sizes))
    return [Node("part", f"{end - size}:{end}", (x,)) for end, size in zip(ends, sizes, strict=True)]


def biased(x: Node, bias: str) -> Node | None:
    """A product with its own bias added, or None: of another layer, or a second time."""
    own = x.label.removesuffix(".labels") if x.kind == "take" else x.label
    if x.kind not in ("linear", "take") or x.biased or bias != f"{own}.bias":
        return None
    return Node(x.kind, x.label, x.inputs, x.rows, biased=True)


def nodes(root: Node) -> Iterator[Node]:
    """Every node, once."""
    seen, stack = set[int](), [root]
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            stack += node.inputs


def differences(wanted: Node, found: Node) -> Iterator[tuple[str, str]]:
    """(where, what) of the first place where the forwards part, then of every linear with other outputs or no bias."""
    if wanted.digest != found.digest:
        yield _parting(wanted, found)
        return
    seen = set[int]()
    stack = [(wanted, found)]
    while stack:
        a, b = stack.pop()
        if id(b) in seen:
            continue
        seen.add(id(b))
        if b.rows is not None and a.rows != b.rows:
            yield a.label, f"has {b.rows} outputs, folded/ has {a.rows}"
        if a.biased and not b.biased:
            yield a.label, "its bias is not added"
        stack += _pairs(a, b)


def _parting(wanted: Node, found: Node) -> tuple[str, str]:
    """Where the first difference is, seen from the tokens: behind it (towards the logits) everything differs."""
    near = "logits"
    while True:
        if wanted.kind != found.kind or wanted.label != found.label or len(wanted.inputs) != len(found.inputs):
            return near, f"comes from {_shown(found)}, where {_shown(wanted)} is expected"
        near = str(wanted)
        wanted, found = next((a, b) for a, b in _pairs(wanted, found) if a.digest != b.digest)


def _pairs(a: Node, b: Node) -> list[tuple[Node, Node]]:
    """Inputs side by side; of sums and products those that are equal, then the others in order."""
    if a.kind not in COMMUTATIVE:
        return list(zip(a.inputs, b.inputs, strict=True))
    rest, same = list(b.inputs), list[tuple[Node, Node]]()
    others = list[Node]()
    for x in a.inputs:
        twin = next((y for y in rest if y.digest == x.digest), None)
        if twin is None:
            others.append(x)
        else:
            rest.remove(twin)
            same.append((x, twin))
    return [*same, *zip(others, rest, strict=True)]


def _shown(node: Node) -> str:
    given = ", ".join(map(str, node.inputs))
    return f"{node} of ({given})" if given else str(node)
