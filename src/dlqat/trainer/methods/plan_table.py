# SPDX-License-Identifier: Apache-2.0
"""A compression plan for people: what the linears become, and what that costs by the paper's count and in truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from dlqat import plan
from dlqat.architecture import Decoder
from dlqat.plan import Plan, Shape
from dlqat.trainer.methods.method import Method
from dlqat.tree import Clustered, LowRank, Sum


def table(method: Method, nodes: Plan, decoder: Decoder) -> Table:
    """What each kind of linear becomes, and its bits."""
    title = Text(f"plan: {method}")  # a regex of the user's may look like markup
    view = Table("becomes", "linears", "count", "bits, paper's count", "bits stored", title=title, title_justify="left")
    for line in summary(method, nodes, decoder.linears()):
        view.add_row(line.becomes, line.layers, str(line.count), f"{line.paper_bits:.2f}", f"{line.bits:.2f}")
    return view


@dataclass(frozen=True, slots=True)
class Line:
    """The linears that become the same."""

    layers: str
    """q_proj, k_proj, ..."""
    count: int
    becomes: str
    paper_bits: float
    """Mean over its layers, as the method's paper counts."""
    bits: float
    """Mean bits a weight that are stored: codes, 16-bit scales, zero-points, labels."""


def summary(method: Method, nodes: Plan, shapes: Mapping[str, Shape]) -> list[Line]:
    """The plan for people: kinds of layers, then all together."""
    kinds: dict[str, list[str]] = {}
    for name, node in nodes.items():
        kinds.setdefault(describe(node), []).append(name)
    lines = [_line(becomes, names, method, nodes, shapes) for becomes, names in kinds.items()]
    return lines if len(lines) == 1 else [*lines, _line("together", list(nodes), method, nodes, shapes)]


def _line(becomes: str, names: list[str], method: Method, nodes: Plan, shapes: Mapping[str, Shape]) -> Line:
    kinds = ", ".join(dict.fromkeys(n.rpartition(".")[2] for n in names))
    sizes = [shapes[n][0] * shapes[n][1] for n in names]
    paper = sum(method.paper_bits(nodes[n], shapes[n]) * size for n, size in zip(names, sizes, strict=True))
    stored = sum(plan.bits(nodes[n], shapes[n]) for n in names)
    return Line(kinds, len(names), becomes, paper / sum(sizes), stored / sum(sizes))


def describe(node: plan.Node) -> str:
    """A node in a few words."""
    match node:
        case LowRank(left, right, rank):
            return f"rank {rank} ({describe(left)}, {describe(right)})"
        case Clustered(centroids, clusters):
            return f"{clusters} shared rows ({describe(centroids)})"
        case Sum(parts):
            return " + ".join(describe(part) for part in parts)
        case plan.Pruned(kept, among, spec):
            return f"{kept}:{among} {spec.grid}"
        case _:
            return str(node.grid)
