# SPDX-License-Identifier: Apache-2.0
"""Integers out of a Core ML package, found by walking from what multiplies to the bytes that it uses.

    linear, gather <- constexpr_blockwise_shift_scale <- int8, int4, uint4 with offset
                   <- constexpr_blockwise_shift_scale <- constexpr_lut_to_dense <- uint3, uint2     iOS26
                   <- constexpr_lut_to_dense <- uint3, uint2; constexpr_blockwise_shift_scale <- table     iOS18
    linear, gather <- constexpr_sparse_to_dense      a pruned weight: sparse.py
    linear, gather <- const                  a weight that stayed float
    mul, add       <- const                  norms; biases that stand by themselves
    gather         <- indices const          labels of rows that share a centroid

The operation's name says which layer it claims to be ("." as "__"). A constant that is used in any other way, and
bytes of the weight file that nothing uses, are faults: what cannot be explained is not proved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlqat.mil.blobs import ALIGN, Damaged
from dlqat.mil.program import Constant, Function, Operation, Package, Type
from dlqat.runtime_tests.readers.contents import Contents, Fact, Integers, Unreadable, Weight, table
from dlqat.runtime_tests.readers.coreml import expression, layouts, sparse
from dlqat.runtime_tests.readers.coreml import facts as coreml_facts
from dlqat.runtime_tests.readers.coreml.constants import claimed_bias, dotted, literal, real_bias
from dlqat.runtime_tests.readers.coreml.cut import INPUT, cut
from dlqat.runtime_tests.readers.expression import Node
from dlqat.runtime_tests.readers.leftover import leftover

PLAIN = ("fp16", "fp32")


def read(program: Path) -> Contents:
    """Walk the default function. Unreadable if the package is damaged."""
    try:
        package = Package(program)
        walk = _Walk(package, package.function())
        walk.run()
        forwards, faults = _forward(package, walk.function)
        faults = (*walk.faults, *faults, *_unused(package, walk.function))
    except Damaged as error:
        raise Unreadable(str(error)) from error
    return Contents(_form(package), tuple(walk.weights), walk.labels, walk.tensors, tuple(walk.facts), forwards, faults)


def _forward(package: Package, function: Function) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The logits as an expression; or none, and why."""
    try:
        return (expression.forward(package, function, used_values(function)),), ()
    except Unreadable as error:
        return (), (str(error),)


def _form(package: Package) -> str:
    return f"specification {package.model.specificationVersion}"


@dataclass(eq=False)
class _Walk:
    """What was found so far."""

    package: Package
    function: Function
    weights: list[Weight] = field(default_factory=list[Weight])
    labels: dict[str, NDArray[np.int32]] = field(default_factory=dict[str, NDArray[np.int32]])
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])
    facts: list[Fact] = field(default_factory=list[Fact])
    faults: list[str] = field(default_factory=list[str])

    def run(self) -> None:
        used = used_values(self.function)
        for operation in self.function.operations:
            if operation.kind == "const" or operation.kind.startswith("constexpr_"):
                continue
            if operation.outputs and not any(o in used for o in operation.outputs):
                continue
            try:
                self._look(operation)
            except Unreadable as error:
                self.faults.append(str(error))
        claims = [f"{w.name} ({w.kind})" for w in self.weights]
        self.faults += [f"{c}: more than one operation claims to be this layer" for c in sorted(_twice(claims))]

    def _look(self, operation: Operation) -> None:
        """Claim the constants of one operation."""
        path = dotted(operation.name)
        self.facts += coreml_facts.facts(self.function, operation)
        for argument, constant in self._constants(operation):
            match operation.kind, argument:
                case ("linear", "weight") | ("gather", "x") if constant.kind != "const":
                    self._weight(operation, path, constant)
                case ("gather", "x") if (kind := table(name := dotted(constant.name))) is not None:
                    self.facts.append(Fact(kind, name, literal(constant).value.astype(np.float32)))
                case ("linear", "weight") | ("gather", "x"):
                    self._tensor(f"{path}.weight", constant)
                case "linear", "bias":
                    if claimed_bias(path, constant):
                        self._tensor(f"{path}.bias", constant)
                case "mul", "y":
                    self._tensor(f"{path}.weight", constant)
                case "add", "y":
                    self._tensor(f"{path.removesuffix('_biased')}.bias", constant)
                case "gather", "indices":
                    self.labels[dotted(constant.name)] = literal(constant).value.astype(np.int32)
                case _:
                    raise Unreadable(f"{constant.name}: {operation.kind} uses it as {argument}, which is not known")

    def _constants(self, operation: Operation) -> Iterator[tuple[str, Operation]]:
        """The arrays among its arguments: expanded weights, floats of more than one number, labels."""
        for argument, bound in operation.inputs.items():
            for name in (b for b in bound if isinstance(b, str)):
                source = self.function.producer.get(name)
                if source is None:
                    continue
                plain = source.kind == "const" and _telling(argument, source.types[0])
                if plain or source.kind.startswith("constexpr_"):
                    yield argument, source

    def _weight(self, operation: Operation, path: str, source: Operation) -> None:
        kind: Literal["matmul", "gather"] = "matmul" if operation.kind == "linear" else "gather"
        parts = (sparse if source.kind == sparse.KIND else layouts).sources(self.function, source)
        self.weights.append(
            Weight(
                name=path,
                kind=kind,
                load=partial(_load, self.function, source),
                stored=tuple(parts),
                spans=layouts.spans(parts),
                program=partial(cut, self.package, self.function, operation),
                input=INPUT,
                biased=real_bias(self.function, operation),
            )
        )

    def _tensor(self, name: str, source: Operation) -> None:
        if name in self.tensors:
            raise Unreadable(f"{name}: more than one operation claims to use it")
        self.tensors[name] = literal(source).value.astype(np.float32)


def used_values(function: Function) -> set[str]:
    """Names of all values that an output or a state depends on."""
    seen: set[str] = set()
    stack = list(function.outputs)
    for operation in function.operations:
        if operation.kind == "write_state":
            stack += operation.names()
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            source = function.producer.get(name)
            stack += source.names() if source is not None else []
    return seen


def _telling(argument: str, kind: Type) -> bool:
    """Whether a plain constant is a parameter: floats in an array, or indices of a gather."""
    return bool(kind.shape) and (kind.kind in PLAIN or argument == "indices")


def _load(function: Function, source: Operation) -> Integers:
    try:
        return (sparse if source.kind == sparse.KIND else layouts).integers(function, source)
    except Damaged as error:
        raise Unreadable(f"{dotted(source.name)}: {error}") from error


def _unused(package: Package, function: Function) -> Iterator[str]:
    """Blobs of the weight files that no used operation names."""
    used = used_values(function)
    named: dict[Path, set[int]] = {}
    for operation in function.operations:
        if not any(o in used for o in operation.outputs):
            continue
        for constant in (a for bound in operation.inputs.values() for a in bound if isinstance(a, Constant)):
            if constant.blobs is not None:
                named.setdefault(constant.blobs.path, set()).add(constant.offset)
    for file in sorted(package.path.rglob("*.bin")):
        known = named.get(file, set())
        stored = set(package.blobs_of(file).offsets())
        if extra := sorted(stored - known):
            yield f"{file.name}: {len(extra)} tensors that nothing uses, the first at byte {extra[0]}"
        blobs = package.blobs_of(file)
        spans = [(0, ALIGN), *((o, ALIGN) for o in stored), *((b.start, b.size) for b in map(blobs.blob, stored))]
        yield from leftover(file.name, blobs.bytes, spans)
        if odd := sorted(known - stored):
            yield f"{file.name}: a tensor is described at byte {odd[0]}, inside another one"


def _twice(names: list[str]) -> set[str]:
    return {n for n in names if names.count(n) > 1}
