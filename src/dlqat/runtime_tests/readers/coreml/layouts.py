# SPDX-License-Identifier: Apache-2.0
"""How MIL's compressed constants lay out codes, scales and zero-points, turned into Integers.

Definitions: coremltools' ops/defs/iOS18/compression.py. Codes and zero-points are made signed: an unsigned number of
b bits means itself less 2^(b-1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.mil.blobs import NARROW
from dlqat.mil.program import Constant, Function, Operation
from dlqat.runtime_tests.readers.contents import Integers, Span, Unreadable

SHIFT_SCALE, LOOKUP = "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"


def sources(function: Function, weight: Operation) -> dict[str, Constant]:
    """The constants behind a weight: "codes", "scales", and "zero_points" or "table" where there are such."""
    inner = _inner(function, weight)
    match weight.kind, inner:
        case "constexpr_blockwise_shift_scale", None:
            names = {"codes": (weight, "data"), "scales": (weight, "scale"), "zero_points": (weight, "offset")}
        case "constexpr_blockwise_shift_scale", Operation(kind="constexpr_lut_to_dense"):
            names = {
                "codes": (inner, "indices"),
                "table": (inner, "lut"),
                "scales": (weight, "scale"),
                "zero_points": (weight, "offset"),
            }
        case "constexpr_lut_to_dense", Operation(kind="constexpr_blockwise_shift_scale"):
            names = {"codes": (weight, "indices"), "table": (inner, "data"), "scales": (inner, "scale")}
            if "offset" in inner.inputs:
                raise Unreadable(f"{weight.name}: a table with an offset is not known")
        case _:
            raise Unreadable(f"{weight.name}: {weight.kind} of {inner.kind if inner else 'plain values'} is not known")
    found: dict[str, Constant] = {}
    for what, (operation, argument) in names.items():
        if argument in operation.inputs:
            found[what] = constant(function, operation, argument)
    return found


def integers(function: Function, weight: Operation) -> Integers:
    """Codes, scales and zero-points of a weight [out, in]. Unreadable if they are laid out in another way."""
    parts = sources(function, weight)
    codes = signed(parts["codes"])
    found = scales(weight, parts, codes.shape)
    return Integers(codes, found, _zero_points(weight, parts, found.shape), codes.shape[1] // found.shape[1])


def scales(weight: Operation, parts: Mapping[str, Constant], codes: tuple[int, ...]) -> NDArray[np.float32]:
    """float32 [out, groups] for codes of that shape."""
    if parts["scales"].type.kind not in ("fp16", "fp32") or len(codes) != 2:
        raise Unreadable(f"{weight.name}: scales {parts['scales'].type.kind} for codes {codes}")
    found = parts["scales"].value.astype(np.float32).reshape(parts["scales"].type.shape[:2])
    if found.shape[0] != codes[0] or codes[1] % found.shape[1]:
        raise Unreadable(f"{weight.name}: scales {found.shape} for codes {codes}")
    return found


def spans(parts: Mapping[str, Constant]) -> dict[str, Span]:
    """Where the bytes lie, as far as they are in the weight file."""
    found: dict[str, Span] = {}
    for what in ("codes", "scales", "zero_points"):
        constant = parts.get(what)
        if constant is not None and constant.blobs is not None and (blob := constant.blob) is not None:
            dtype = "float16" if blob.kind == "fp16" else "float32"
            found[what] = Span(constant.blobs.path, blob.start, blob.size, dtype)
    return found


def _zero_points(weight: Operation, parts: Mapping[str, Constant], shape: tuple[int, int]) -> NDArray[np.int8] | None:
    if "table" in parts and weight.kind == LOOKUP:
        return _of_table(weight, parts, shape)
    if "table" in parts:
        levels = _half(parts["codes"]) * 2
        if not np.array_equal(parts["table"].value.reshape(-1), np.arange(levels)):
            raise Unreadable(f"{weight.name}: its table is not 0 .. {levels - 1}")
        if "zero_points" not in parts:
            return np.full(shape, -levels // 2, np.int8)
        return (parts["zero_points"].value.astype(np.int16) - levels // 2).astype(np.int8)
    if "zero_points" in parts:
        return signed(parts["zero_points"])
    half = _half(parts["codes"]) if parts["codes"].type.kind.startswith("uint") else 0
    return np.full(shape, -half, np.int8) if half else None


def _of_table(weight: Operation, parts: Mapping[str, Constant], shape: tuple[int, int]) -> NDArray[np.int8]:
    """Table int8 [out, groups, levels, 1] of level - 2^(b-1) - zero: the zero-point is in its first entry."""
    half, table = _half(parts["codes"]), parts["table"].value
    if table.shape != (*shape, 2 * half, 1):
        raise Unreadable(f"{weight.name}: a table {table.shape} for {shape} groups of {2 * half} levels")
    steps = np.diff(table.astype(np.int16), axis=2)
    if bool((steps != 1).any()):
        at = tuple(int(i) for i in np.argwhere(steps != 1)[0][:2])
        raise Unreadable(f"{weight.name}: the table of group {at} does not rise by 1, so it has no zero-points")
    return (-half - table[:, :, 0, 0].astype(np.int16)).astype(np.int8)


def signed(constant: Constant) -> NDArray[np.int8]:
    """Numbers as signed codes."""
    values: NDArray[Any] = constant.value
    match constant.type.kind:
        case "int8" | "int4":
            return values.astype(np.int8, copy=False)
        case "uint8" | "uint4" | "uint3" | "uint2":
            return (values.astype(np.int16) - _half(constant)).astype(np.int8)
        case other:
            raise Unreadable(f"codes of type {other} are not known")


def _half(constant: Constant) -> int:
    return 1 << (NARROW.get(constant.type.kind, 8) - 1)


def _inner(function: Function, weight: Operation) -> Operation | None:
    """The compressed constant that another one is made of."""
    return producer(function, weight, "data") or producer(function, weight, "lut")


def producer(function: Function, operation: Operation, argument: str) -> Operation | None:
    """What computes an argument; None where it is stored."""
    for bound in operation.inputs.get(argument, ()):
        source = function.producer.get(bound) if isinstance(bound, str) else None
        if source is not None and source.kind != "const":
            return source
    return None


def constant(function: Function, operation: Operation, argument: str) -> Constant:
    """The stored value of an argument. Unreadable if it is computed."""
    found = operation.inputs[argument][0]
    if isinstance(found, str):
        source = function.producer.get(found)
        found = source.inputs["val"][0] if source is not None and source.kind == "const" else found
    if not isinstance(found, Constant):
        raise Unreadable(f"{operation.name}: its {argument} is computed, not stored")
    return found
