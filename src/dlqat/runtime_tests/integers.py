# SPDX-License-Identifier: Apache-2.0
"""L0: the integers of the artifact are the integers of folded/. Law 4, without a tolerance.

    expected                                     found by the reader
    every leaf of every layer, as a matmul       the operation of that name, its codes, scales, zero-points
    the embedding, as a gather                   the operation of that name
    a tied head: the embedding's integers        the matmul named lm_head
    labels, norms, biases, float linears         stored tensors in use, by name, bit for bit

What is missing, what is too much and what the reader could not explain are differences as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlqat import folded
from dlqat.checkpoint import FoldedModel
from dlqat.folded import Quantized
from dlqat.runtime_tests.readers.reader import Contents, Integers, Unreadable, Weight, parts

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@dataclass(frozen=True, slots=True)
class Difference:
    """`wrong` of `total` numbers of a tensor; total 0 where there is nothing to count (missing, surplus)."""

    name: str
    what: str
    wrong: int
    total: int
    detail: str

    def __str__(self) -> str:
        count = f"{self.wrong} of {self.total} {self.what} differ" if self.total else self.what
        return f"{self.name}: {count}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True, slots=True)
class Integrity:
    """What was compared, and every difference, the worst first."""

    weights: int
    codes: int
    scales: int
    zero_points: int
    labels: int
    floats: int
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
    if tied(model) and EMBEDDING in model.layers:
        found[HEAD, "matmul"] = Expected(HEAD, "matmul", EMBEDDING, EMBEDDING)
    return Wanted(model, found, labels)


def tied(model: FoldedModel) -> bool:
    """Whether the head multiplies with the embedding's weight."""
    return HEAD not in model.layers and f"{HEAD}.weight" not in model.tensors


def compare(contents: Contents, want: Wanted, progress: Callable[[str], None] = lambda _: None) -> Integrity:
    """Everything of the artifact against everything of folded/."""
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
    differences += _floats(contents.tensors, want.model)
    differences.sort(key=lambda d: -(d.wrong / d.total if d.total else 1.0))
    labels = sum(v.size for v in contents.labels.values())
    numbers = [int(c) for c in counts]
    return Integrity(len(contents.weights), *numbers, labels, _count_floats(contents, want.model), tuple(differences))


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
    return Integers(found.codes[rows], found.scales[rows], zero_points)


def _leaf_differences(name: str, found: Integers, leaf: Quantized) -> Iterator[Difference]:
    codes, scales = leaf.codes.numpy(), leaf.scales.numpy()
    if found.codes.shape != codes.shape:
        yield Difference(name, f"has shape {found.codes.shape}, folded/ has {codes.shape}", 0, 0, "")
        return
    yield from _unequal(name, "codes", found.codes, codes)
    groups = found.scales.shape[1]
    if groups % scales.shape[1]:
        yield Difference(name, f"has {groups} scales per row, folded/ has {scales.shape[1]}", 0, 0, "")
        return
    repeat = groups // scales.shape[1]  # a scale may be stored once per block of its group, each copy equal
    yield from _unequal(name, "scales", found.scales, np.repeat(scales, repeat, axis=1))
    none = np.zeros((1, 1), np.int8)
    zero_points = none if leaf.zero_points is None else np.repeat(leaf.zero_points.numpy(), repeat, axis=1)
    have = none if found.zero_points is None else found.zero_points
    if have is not none or zero_points is not none:
        yield from _unequal(name, "zero-points", *np.broadcast_arrays(have, zero_points))


def _unequal(name: str, what: str, found: NDArray[np.generic], wanted: NDArray[np.generic]) -> Iterator[Difference]:
    """Differences as bits: -0.0 is not 0.0, and a NaN equals itself."""
    if found.dtype == np.float32:
        found_bits, wanted_bits = (np.ascontiguousarray(x).view(np.uint32) for x in (found, wanted))
    else:
        found_bits, wanted_bits = found, wanted
    wrong = found_bits != wanted_bits
    if bool(wrong.any()):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        detail = f"first at {list(at)}: {found[at]}, folded/ has {wanted[at]}"
        yield Difference(name, what, int(wrong.sum()), wrong.size, detail)


def _labels(found: Mapping[str, NDArray[np.int32]], wanted: Mapping[str, NDArray[np.int32]]) -> Iterator[Difference]:
    yield from _named(found, wanted, "labels")
    for name in sorted(set(found) - set(wanted)):
        yield Difference(name, "labels that folded/ does not have", 0, 0, "")


def _floats(found: Mapping[str, NDArray[np.float32]], model: FoldedModel) -> Iterator[Difference]:
    wanted = {name: model.tensors[name].float().numpy() for name in model.tensors}
    if tied(model) and f"{EMBEDDING}.weight" in wanted:
        wanted[f"{HEAD}.weight"] = wanted[f"{EMBEDDING}.weight"]
    yield from _named(_split_biases(found, wanted, model), wanted, "numbers")
    for name in sorted(set(found) - set(wanted)):
        parameter = name.endswith((".weight", ".bias")) and "+" not in name
        if parameter:
            yield Difference(name, "a parameter that folded/ does not have", 0, 0, "")


def _split_biases(
    found: Mapping[str, NDArray[np.float32]], wanted: Mapping[str, NDArray[np.float32]], model: FoldedModel
) -> dict[str, NDArray[np.float32]]:
    """Biases of layers whose rows were put together, by their own names; a layer without one has zeros there."""
    split = dict(found)
    for joined in [n for n in found if "+" in n and n.endswith(".bias")]:
        row = 0
        for name in parts(joined.removesuffix(".bias")):
            width = folded.shape(model.layers[name])[0] if name in model.layers else 0
            part = found[joined][row : row + width]
            row += width
            if f"{name}.bias" in wanted or bool(part.any()):
                split[f"{name}.bias"] = part
    return split


def _named(
    found: Mapping[str, NDArray[np.generic]], wanted: Mapping[str, NDArray[np.generic]], what: str
) -> Iterator[Difference]:
    for name, values in wanted.items():
        if name not in found:
            yield Difference(name, "missing: not stored, or nothing uses it", 0, 0, "")
        elif found[name].shape != values.shape:
            yield Difference(name, f"has shape {found[name].shape}, folded/ has {values.shape}", 0, 0, "")
        else:
            yield from _unequal(name, what, found[name], values)


def _count_floats(contents: Contents, model: FoldedModel) -> int:
    return sum(v.size for name, v in contents.tensors.items() if name in model.tensors or "+" in name)
