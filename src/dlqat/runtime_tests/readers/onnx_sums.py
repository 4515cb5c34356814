# SPDX-License-Identifier: Apache-2.0
"""Products of bytes (the web form): MatMulInteger, and the walk to the numbers around it.

    x -> Abs -> ReduceMax -> Max -> Mul = step
    x, step -> Div -> Round -> Add 128 -> Cast uint8 (-> Reshape -> Transpose) = q
    codes -> Cast int8, or codes and zero_points -> Cast int32 -> Sub -> Cast int8, or codes in INT8 = weight
    q, weight, 128 -> MatMulInteger -> Cast float -> Mul step -> Mul scales               one scale per output
                                                  -> Mul scales -> ReduceSum -> Mul step  groups of inputs

codes [in, out] with scales and zero-points [out], or [groups, 1, group, out] with [groups, 1, 1, out]. Which numbers the
rounding really makes is for rung L1; here it is only held to these operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from dlqat.runtime_tests.readers.onnx_file import UNSIGNED, OnnxFile, attributes
from dlqat.runtime_tests.readers.onnx_layouts import stored
from dlqat.runtime_tests.readers.reader import Integers, Unreadable

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


def product(file: OnnxFile, node: Any) -> Product:
    """The walk from a MatMulInteger. Unreadable where another operation stands than above."""
    back, ahead = _Walk(file, node), _Walk(file, node)
    q, weight, middle = node.input
    grouped = back.kind(q) == "Transpose"
    if grouped:
        q = back.step(back.step(q, "Transpose"), "Reshape")
    moved = back.node(back.step(q, "Cast"), "Add")
    quotient = back.node(back.step(moved.input[0], "Round"), "Div")
    x, step = quotient.input
    top = back.node(back.node(step, "Mul").input[0], "Max")
    if back.step(back.step(top.input[0], "ReduceMax"), "Abs") != x:
        raise Unreadable(f"{node.name}: the step of its input is taken from something else than {x}")
    if (file.array(moved.input[1]).item(), file.integers(middle).item()) != (128, 128):
        raise Unreadable(f"{node.name}: 0 in its input has another code than 128")
    y = ahead.after(node.output[0], "Cast")
    if grouped:
        y, scales = ahead.times(y.output[0])
        y, again = ahead.times(ahead.after(y.output[0], "ReduceSum").output[0])
    else:
        y, again = ahead.times(y.output[0])
        y, scales = ahead.times(y.output[0])
    if again != step:
        raise Unreadable(f"{node.name}: its sums are multiplied by {again}, not by the step of its input")
    return Product(x, y.output[0], back.weight(weight) | {"scales": scales}, middle)


def load(file: OnnxFile, node: Any, sources: dict[str, str]) -> Integers:
    """The integers behind a MatMulInteger, if scales and zero-points are laid out as this file says."""
    codes, scales = stored(file, sources["codes"]), file.floats(sources["scales"])
    out, grouped = codes.shape[-1], codes.ndim == 4
    wanted = (codes.shape[0], 1, 1, out) if grouped else (out,)
    zero_points = stored(file, sources["zero_points"]) if "zero_points" in sources else np.zeros(wanted, np.int8)
    permuted = attributes(file.producer[node.input[0]]).get("perm") if grouped else GROUPS_FIRST
    if codes.ndim not in (2, 4) or scales.shape != wanted or zero_points.shape != wanted or permuted != GROUPS_FIRST:
        raise Unreadable(f"{node.name}: scales {scales.shape}, zero-points {zero_points.shape}, codes {codes.shape}")
    turned = zero_points.reshape(-1, out).T if "zero_points" in sources else None
    return Integers(codes.reshape(-1, out).T, scales.reshape(-1, out).T, turned, codes.shape[-2])


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

    def weight(self, value: str) -> dict[str, str]:
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
