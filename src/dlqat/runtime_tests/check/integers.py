# SPDX-License-Identifier: Apache-2.0
"""L0: the integers of the artifact are the integers of folded/. Law 4, without a tolerance.

    expected                                     found by the reader
    every leaf of every layer, as a matmul       the operation of that name, its codes, scales, zero-points
    the embedding, as a gather                   the operation of that name
    a tied head: the embedding's integers        the matmul named lm_head
    labels, norms, biases, float linears         stored tensors in use, by name, bit for bit
    epsilons, scales, windows, rotary tables     what operations compute with (facts.py)

What is missing, what is too much and what the reader could not explain are differences as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlqat import architecture, folded
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.folded import Quantized
from dlqat.folded.disk import FoldedModel
from dlqat.runtime_tests.check import facts as forward_facts
from dlqat.runtime_tests.check import floats, wanted_forward
from dlqat.runtime_tests.check.differences import Difference, named, unequal
from dlqat.runtime_tests.readers import expression
from dlqat.runtime_tests.readers.contents import Contents, Integers, Unreadable, Weight, parts


@dataclass(frozen=True, slots=True)
class Integrity:
    """What was compared, and every difference, the worst first."""

    weights: int
    codes: int
    scales: int
    zero_points: int
    labels: int
    floats: int
    facts: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """One multiplication that the model needs: the leaf `leaf_path` of `layer`, under `name`."""

    name: str
    kind: str
    layer: str
    leaf_path: str


@dataclass(frozen=True, eq=False)
class Wanted:
    """What an artifact of `model` must have: its multiplications by name and kind, and its labels."""

    model: FoldedModel
    multiplications: Mapping[tuple[str, str], Expected]
    labels: Mapping[str, NDArray[np.int32]]

    def leaf(self, name: str, kind: str) -> Quantized:
        """The integers behind a multiplication."""
        want = self.multiplications[name, kind]
        return dict(folded.leaves(self.model.layers[want.layer], want.layer))[want.leaf_path]


def wanted(model: FoldedModel) -> Wanted:
    """Read every layer once for its structure."""
    found: dict[tuple[str, str], Expected] = {}
    labels: dict[str, NDArray[np.int32]] = {}
    for name in model.layers:
        layer, kind = model.layers[name], "gather" if name == EMBEDDING else "matmul"
        for path, _ in folded.leaves(layer, name):
            found[path, kind] = Expected(path, kind, name, path)
        labels.update({path: ids.numpy() for path, ids in folded.labels(layer, name)})
    if model.tied and EMBEDDING in model.layers:
        found[HEAD, "matmul"] = Expected(HEAD, "matmul", EMBEDDING, EMBEDDING)
    return Wanted(model, found, labels)


def compare(
    contents: Contents, want: Wanted, progress: Callable[[str], None] = lambda _: None, positions: int = 0
) -> Integrity:
    """Everything of the artifact against everything of folded/. `positions`: how many it says to have room for."""
    missing = dict(want.multiplications)
    differences = [Difference("artifact", fault, 0, 0, "") for fault in contents.faults]
    counts = np.zeros(3, np.int64)
    for weight in contents.weights:
        progress(weight.name)
        for name in parts(weight.name):
            missing.pop((name, weight.kind), None)
        found, more = compare_weight(weight, want)
        differences += more
        counts += found
    for one in missing.values():
        differences.append(
            Difference(one.name, f"missing: nothing in the artifact multiplies with it ({one.kind})", 0, 0, "")
        )
    differences += _labels(contents.labels, want.labels)
    count, more = floats.compare(contents.tensors, want.model)
    facts, other = forward_facts.compare(contents.facts, architecture.read(want.model.config), positions)
    differences += [*more, *other]
    if contents.forwards == ():
        differences.append(Difference("logits", "missing: no forward from input_ids to them was found", 0, 0, ""))
    for logits in contents.forwards or ():
        selected = any(node.kind == "select" for node in expression.nodes(logits))
        parted = expression.differences(wanted_forward.wanted(want.model, selected=selected), logits)
        differences += [Difference(where, what, 0, 0, "") for where, what in parted]
    differences.sort(key=lambda d: -(d.wrong / d.total if d.total else 1.0))
    labels = sum(v.size for v in contents.labels.values())
    return Integrity(
        weights=len(contents.weights),
        codes=int(counts[0]),
        scales=int(counts[1]),
        zero_points=int(counts[2]),
        labels=labels,
        floats=count,
        facts=facts,
        differences=tuple(differences),
    )


def compare_weight(weight: Weight, want: Wanted) -> tuple[NDArray[np.int64], list[Difference]]:
    """(codes, scales and zero-points compared; differences) of one multiplication.

    Its rows are compared with the leaf, or with the leaves one after the other, that its name claims.
    """
    none, names = np.zeros(3, np.int64), parts(weight.name)
    if unknown := [n for n in names if (n, weight.kind) not in want.multiplications]:
        return none, [Difference(weight.name, f"multiplies, but folded/ has no {' or '.join(unknown)}", 0, 0, "")]
    try:
        found = weight.load()
    except Unreadable as error:
        return none, [Difference(weight.name, str(error), 0, 0, "")]
    row, zero_points, differences = 0, 0, list[Difference]()
    for name in names:
        leaf = want.leaf(name, weight.kind)
        rows = slice(row, row + leaf.codes.shape[0])
        row = rows.stop
        differences += _leaf_differences(name, _rows(found, rows), leaf)
        zero_points += 0 if leaf.zero_points is None else leaf.zero_points.numel()
    if row != found.codes.shape[0]:
        differences.append(Difference(weight.name, f"has {found.codes.shape[0]} outputs, folded/ has {row}", 0, 0, ""))
    return np.array([found.codes.size, found.scales.size, zero_points]), differences


def _rows(found: Integers, rows: slice) -> Integers:
    zero_points = None if found.zero_points is None else found.zero_points[rows]
    return Integers(found.codes[rows], found.scales[rows], zero_points, found.block)


def _leaf_differences(name: str, found: Integers, leaf: Quantized) -> Iterator[Difference]:
    codes, scales = leaf.codes.numpy(), leaf.scales.numpy()
    if found.codes.shape != codes.shape:
        yield Difference(name, f"has shape {found.codes.shape}, folded/ has {codes.shape}", 0, 0, "")
        return
    yield from unequal(name, "codes", found.codes, codes)
    groups, inputs = scales.shape[1], codes.shape[1] // scales.shape[1]
    repeat = found.scales.shape[1] // groups  # a scale may be stored once per block of its group, each copy equal
    if repeat * groups != found.scales.shape[1] or (groups > 1 and found.block * repeat != inputs):
        detail = f"{found.scales.shape[1]} per row, for {found.block} inputs each"
        yield Difference(name, f"has scales {detail}; folded/ has {groups}, for {inputs} each", 0, 0, "")
        return
    yield from unequal(name, "scales", found.scales, np.repeat(scales, repeat, axis=1))
    none = np.zeros((1, 1), np.int8)
    zero_points = none if leaf.zero_points is None else np.repeat(leaf.zero_points.numpy(), repeat, axis=1)
    have = none if found.zero_points is None else found.zero_points
    if have is not none or zero_points is not none:
        yield from unequal(name, "zero-points", *np.broadcast_arrays(have, zero_points))


def _labels(found: Mapping[str, NDArray[np.int32]], wanted: Mapping[str, NDArray[np.int32]]) -> Iterator[Difference]:
    yield from named(found, wanted, "labels")
    for name in sorted(set(found) - set(wanted)):
        yield Difference(name, "labels that folded/ does not have", 0, 0, "")
