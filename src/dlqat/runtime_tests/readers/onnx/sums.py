# SPDX-License-Identifier: Apache-2.0
"""Products of bytes (the web form): MatMulInteger, and the walk to the numbers around it.

    x (-> Reshape into groups) = b        b -> Abs -> ReduceMax -> Max = top        127, top -> Div = inverse
    b, inverse -> Mul -> Round -> Add 128 -> Cast uint8 (-> Transpose, groups first) = q
    top, 127 -> Div (-> Transpose) = step
    codes, 15 -> BitwiseAnd; codes, 4 -> BitShift right; both -> Concat along the inputs = weight (code + 8)
    codes in INT8 -> Cast uint8 -> BitwiseXor 128 = weight (code + 128)
    q, weight, 128, zero -> MatMulInteger -> Cast float -> Mul scales -> Mul step (-> ReduceSum over the groups)

zero is 8 or 128, or the zero-points, raised as the codes are (-> Expand from [out] to the groups). codes [in, out] with scales and zero-points [out], or
[groups, 1, group, out] with [groups, 1, 1, out] or [out]; two codes to a byte have half the inputs there. Which numbers the rounding really makes is for rung L1; here it is only held to these operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from dlqat.runtime_tests.readers.contents import Integers, Unreadable
from dlqat.runtime_tests.readers.onnx.file import OnnxFile, attributes

GROUPS_FIRST = [2, 0, 1, 3]


@dataclass(frozen=True, slots=True)
class Product:
    """What stands around one MatMulInteger."""

    entry: str
    """x."""
    output: str
    sources: dict[str, str]
    """The initializers behind "codes", "scales" and "zero_points"."""
    raised: int
    """What was added to codes and zero-points: 8 (two to a byte), or 128."""
    constants: tuple[str, ...]
    """The initializers with the bytes that every such product has."""
    turned: str | None
    """The step, groups first, if there are groups."""


def product(file: OnnxFile, node: Any) -> Product:
    """The walk from a MatMulInteger. Unreadable where another operation stands than above."""
    walk = _Walk(file, node)
    q, weight, middle, zero = (*node.input, "", "")[:4]
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
    sources, raised, constants = walk.weight(weight)
    zero = walk.step(zero, "Expand") if walk.kind(zero) == "Expand" else zero
    if zero not in file.initializers or file.initializers[zero].data_type != TensorProto.UINT8:
        raise Unreadable(f"{node.name}: its weight is lowered by {zero or 'nothing'}, which is not a stored byte")
    if file.initializers[zero].dims:
        sources["zero_points"] = zero
    elif (found := file.integers(zero).item()) == raised:
        constants = (*constants, zero)
    else:
        raise Unreadable(f"{node.name}: codes are raised by {raised} and lowered by {found}")
    sources["scales"] = scales
    return Product(entry, y.output[0], sources, raised, (middle, *constants), step if grouped else None)


def before_bytes(file: OnnxFile) -> bool:
    """Whether this is the web form as dlqat wrote it before it held two codes in a byte."""
    kinds = (
        file.initializers[n].data_type
        for node in file.nodes
        if node.op_type == "Cast"
        for n in node.input
        if n in file.initializers
    )
    return any(n.op_type == "MatMulInteger" for n in file.nodes) and TensorProto.INT4 in kinds


def load(file: OnnxFile, node: Any, found: Product) -> Integers:
    """The integers behind a MatMulInteger, if scales and zero-points are laid out as this file says."""
    sources, scales = found.sources, file.floats(found.sources["scales"])
    codes = _lowered(file, sources["codes"], found.raised)
    out, grouped = codes.shape[-1], codes.ndim == 4
    wanted = (codes.shape[0], 1, 1, out) if grouped and scales.ndim > 1 else (out,)
    zero_points = np.zeros(wanted, np.int8)
    if "zero_points" in sources:
        zero_points = (file.integers(sources["zero_points"]) - np.uint8(found.raised)).view(np.int8)
    permuted = [attributes(file.producer[v]).get("perm") for v in (node.input[0], found.turned) if grouped and v]
    laid = codes.ndim == 2 or (grouped and permuted == [GROUPS_FIRST] * 2)
    if not laid or scales.shape != wanted or zero_points.shape != wanted:
        raise Unreadable(f"{node.name}: scales {scales.shape}, zero-points {zero_points.shape}, codes {codes.shape}")
    turned = zero_points.reshape(-1, out).T if "zero_points" in sources else None
    block = codes.size // out // (len(scales) if scales.ndim > 1 else 1)
    return Integers(codes.reshape(-1, out).T, scales.reshape(-1, out).T, turned, block)


def _lowered(file: OnnxFile, name: str, raised: int) -> NDArray[np.int8]:
    """The codes behind an initializer, in their full shape."""
    held = file.integers(name)
    if raised == 128:
        return held.view(np.int8)
    return np.concatenate([held & 15, held >> 4], -2).view(np.int8) - np.int8(raised)


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

    def weight(self, value: str) -> tuple[dict[str, str], int, tuple[str, ...]]:
        """(sources, what the codes are raised by, the constants on the way)."""
        if self.kind(value) == "BitwiseXor":
            raised, by = self.node(value, "BitwiseXor").input
            self.bytes({by: 128})
            return {"codes": self.stored(self.cast(raised, TensorProto.UINT8), TensorProto.INT8)}, 128, (by,)
        halves = self.node(value, "Concat")
        first, second = (self.node(v, kind) for v, kind in zip(halves.input, ("BitwiseAnd", "BitShift"), strict=True))
        codes, other = self.stored(first.input[0], TensorProto.UINT8), second.input[0]
        axis = len(self.file.initializers[codes].dims) - 2
        if (codes, axis, b"RIGHT") != (other, attributes(halves)["axis"], attributes(second)["direction"]) or axis < 0:
            raise Unreadable(f"{self.start.name}: {value} is not made of the halves of {codes}'s bytes")
        self.bytes({first.input[1]: 15, second.input[1]: 4})
        return {"codes": codes}, 8, (first.input[1], second.input[1])

    def bytes(self, wanted: dict[str, int]) -> None:
        for name, value in wanted.items():
            if (found := self.file.integers(self.stored(name, TensorProto.UINT8)).tolist()) != value:
                raise Unreadable(f"{self.start.name}: {name} is {found}, where {value} is expected")

    def cast(self, value: str, to: int) -> str:
        if attributes(self.node(value, "Cast")).get("to") != to:
            raise Unreadable(f"{self.start.name}: {value} is cast to another type than its codes need")
        return self.step(value, "Cast")

    def stored(self, value: str, kind: int) -> str:
        if value not in self.file.initializers or self.file.initializers[value].data_type != kind:
            raise Unreadable(f"{self.start.name}: {value} is not a stored tensor of {TensorProto.DataType.Name(kind)}")
        return value
