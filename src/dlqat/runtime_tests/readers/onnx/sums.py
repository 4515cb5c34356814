# SPDX-License-Identifier: Apache-2.0
"""Products of bytes (the web form): MatMulInteger, and the walk to the numbers around it.

    x (-> Reshape into groups) = b        b -> Abs -> ReduceMax -> Max = top        127, top -> Div = inverse
    b, inverse -> Mul -> Round -> Add 128 -> Cast uint8 (-> Transpose, groups first) = q
    top, 127 -> Div (-> Transpose) = step
    codes -> Cast int8, or codes and zero_points -> Cast int32 -> Sub -> Cast int8, or codes in INT8 = weight
    codes in INT8 -> Cast uint8 -> BitwiseXor 128, with 128 as its zero-point, = weight (code + 128)
    q, weight, 128 -> MatMulInteger -> Cast float -> Mul scales -> Mul step (-> ReduceSum over the groups)

codes [in, out] with scales and zero-points [out], or [groups, 1, group, out] with [groups, 1, 1, out] or [out]. Which
numbers the rounding really makes is for rung L1; here it is only held to these operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from dlqat.runtime_tests.readers.contents import Integers, Unreadable
from dlqat.runtime_tests.readers.onnx.file import UNSIGNED, OnnxFile, attributes
from dlqat.runtime_tests.readers.onnx.layouts import stored

GROUPS_FIRST = [2, 0, 1, 3]


@dataclass(frozen=True, slots=True)
class Product:
    """What stands around one MatMulInteger."""

    entry: str
    """x."""
    output: str
    sources: dict[str, str]
    """The initializers behind "codes", "scales" and "zero_points"."""
    middle: str
    """The initializer with the input's zero-point."""
    turned: str | None
    """The step, groups first, if there are groups."""


def product(file: OnnxFile, node: Any) -> Product:
    """The walk from a MatMulInteger. Unreadable where another operation stands than above."""
    walk = _Walk(file, node)
    q, weight, middle, *offset = node.input
    if grouped := walk.kind(q) == "Transpose":
        q = walk.step(q, "Transpose")
    moved = walk.node(walk.step(q, "Cast"), "Add")
    block, inverse = walk.node(walk.step(moved.input[0], "Round"), "Mul").input
    most, top = walk.node(inverse, "Div").input
    if walk.step(walk.step(walk.step(top, "Max"), "ReduceMax"), "Abs") != block:
        raise Unreadable(f"{node.name}: the step of its input is taken from something else than {block}")
    numbers = file.array(moved.input[1]).item(), file.integers(middle).item(), file.array(most).item()
    if numbers != (128, 128, 127):
        raise Unreadable(f"{node.name}: its input is rounded with {numbers}, not with 128, 128 and 127")
    y, scales = walk.times(walk.after(node.output[0], "Cast").output[0])
    y, step = walk.times(y.output[0])
    if list(walk.node(walk.step(step, "Transpose") if grouped else step, "Div").input) != [top, most]:
        raise Unreadable(f"{node.name}: its sums are multiplied by {step}, not by the step of its input")
    y = walk.after(y.output[0], "ReduceSum") if grouped else y
    entry = walk.step(block, "Reshape") if grouped else str(block)
    sources = walk.weight(weight, offset) | {"scales": scales}
    return Product(entry, y.output[0], sources, middle, step if grouped else None)


def load(file: OnnxFile, node: Any, found: Product) -> Integers:
    """The integers behind a MatMulInteger, if scales and zero-points are laid out as this file says."""
    sources = found.sources
    codes, scales = stored(file, sources["codes"]), file.floats(sources["scales"])
    out, grouped = codes.shape[-1], codes.ndim == 4
    wanted = (codes.shape[0], 1, 1, out) if grouped and scales.ndim > 1 else (out,)
    zero_points = stored(file, sources["zero_points"]) if "zero_points" in sources else np.zeros(wanted, np.int8)
    permuted = [attributes(file.producer[v]).get("perm") for v in (node.input[0], found.turned) if grouped and v]
    laid = codes.ndim == 2 or (grouped and permuted == [GROUPS_FIRST] * 2)
    if not laid or scales.shape != wanted or zero_points.shape != wanted:
        raise Unreadable(f"{node.name}: scales {scales.shape}, zero-points {zero_points.shape}, codes {codes.shape}")
    turned = zero_points.reshape(-1, out).T if "zero_points" in sources else None
    block = codes.size // out // (len(scales) if scales.ndim > 1 else 1)
    return Integers(codes.reshape(-1, out).T, scales.reshape(-1, out).T, turned, block)


class _Walk:
    """Steps from value to value; Unreadable, naming the multiplication, at a step that is not the expected one."""

    def __init__(self, file: OnnxFile, start: Any) -> None:
        self.file, self.start = file, start

    def kind(self, value: str) -> str:
        return self.file.producer[value].op_type if value in self.file.producer else "stored"

    def node(self, value: str, kind: str) -> Any:
        if self.kind(value) != kind:
            raise Unreadable(f"{self.start.name}: {value} comes from {self.kind(value)}, where {kind} is expected")
        return self.file.producer[value]

    def step(self, value: str, kind: str) -> str:
        return str(self.node(value, kind).input[0])

    def after(self, value: str, kind: str) -> Any:
        users = self.file.consumers.get(value, [])
        if len(users) != 1 or users[0].op_type != kind:
            found = ", ".join(u.op_type for u in users) or "nothing"
            raise Unreadable(f"{self.start.name}: {value} goes to {found}, where {kind} is expected")
        return users[0]

    def times(self, value: str) -> tuple[Any, str]:
        """(the Mul that takes `value`, its other factor)."""
        node = self.after(value, "Mul")
        return node, str(node.input[1])

    def weight(self, value: str, offset: list[str]) -> dict[str, str]:
        if offset:
            raised, by = self.node(value, "BitwiseXor").input
            if (found := [self.file.integers(v).item() for v in (by, *offset)]) != [128, 128]:
                raise Unreadable(f"{self.start.name}: codes are raised and lowered by {found}, not by 128")
            return {"codes": self.signed(self.cast(raised, TensorProto.UINT8))}
        if value in self.file.initializers:
            return {"codes": self.signed(value)}
        value = self.cast(value, TensorProto.INT8)
        if self.kind(value) != "Sub":
            return {"codes": self.signed(value)}
        codes, zero_points = (self.cast(v, TensorProto.INT32) for v in self.node(value, "Sub").input)
        return {"codes": self.signed(codes), "zero_points": self.signed(zero_points)}

    def cast(self, value: str, to: int) -> str:
        if attributes(self.node(value, "Cast")).get("to") != to:
            raise Unreadable(f"{self.start.name}: {value} is cast to another type than its codes need")
        return self.step(value, "Cast")

    def signed(self, value: str) -> str:
        if value not in self.file.initializers or self.file.initializers[value].data_type in UNSIGNED:
            raise Unreadable(f"{self.start.name}: {value} is no stored tensor of signed integers")
        return value
