# SPDX-License-Identifier: Apache-2.0
"""Pruned weights of a Core ML package as Integers: a mask, and codes only where it is 1.

    constexpr_sparse_to_dense <- constexpr_sparse_blockwise_shift_scale <- mask uint1, int4, int8 or uint4, scale
                              <- constexpr_lut_to_sparse <- mask uint1, uint1, table <- constexpr_blockwise_shift_scale

A weight that the mask leaves out is 0, so its code is the zero-point of its group (0 where there is none). The table of
the second form has to be -1 and 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlqat.mil.program import Constant, Function, Operation
from dlqat.runtime_tests.readers.contents import Integers, Unreadable
from dlqat.runtime_tests.readers.coreml import layouts

KIND = "constexpr_sparse_to_dense"


def sources(function: Function, weight: Operation) -> dict[str, Constant]:
    """The constants behind a weight: "codes" (those that are left), "mask", "scales", and "zero_points" or "table"."""
    inner = _inner(function, weight)
    match inner.kind:
        case "constexpr_sparse_blockwise_shift_scale":
            names = {"codes": (inner, "nonzero_data"), "mask": (inner, "data_mask"), "scales": (inner, "scale")}
            if "offset" in inner.inputs:
                names["zero_points"] = (inner, "offset")
        case "constexpr_lut_to_sparse":
            table = layouts.producer(function, inner, "lut")
            if table is None or table.kind != layouts.SHIFT_SCALE or "offset" in table.inputs:
                raise Unreadable(f"{weight.name}: the table of its signs is not one of scales")
            names = {"codes": (inner, "indices_nonzero_data"), "mask": (inner, "indices_mask")}
            names |= {"table": (table, "data"), "scales": (table, "scale")}
        case other:
            raise Unreadable(f"{weight.name}: {KIND} of {other} is not known")
    return {what: layouts.constant(function, *place) for what, place in names.items()}


def integers(function: Function, weight: Operation) -> Integers:
    """Codes, scales and zero-points of a weight [out, in]. Unreadable if they are laid out in another way."""
    parts = sources(function, weight)
    mask: NDArray[np.bool_] = parts["mask"].value != 0
    scales = layouts.scales(weight, parts, mask.shape)
    zero_points = layouts.signed(parts["zero_points"]) if "zero_points" in parts else None
    if zero_points is None and "table" not in parts and parts["codes"].type.kind.startswith("uint"):
        raise Unreadable(f"{weight.name}: codes {parts['codes'].type.kind} without zero-points are not known")
    left = _signs(weight, parts, scales.shape) if "table" in parts else layouts.signed(parts["codes"])
    if left.shape != (int(mask.sum()),):
        raise Unreadable(f"{weight.name}: codes differ in number: {left.size} for a mask with {int(mask.sum())} ones")
    block = mask.shape[1] // scales.shape[1]
    codes = np.zeros(mask.shape, np.int8) if zero_points is None else np.repeat(zero_points, block, axis=1)
    codes[mask] = left
    return Integers(codes, scales, zero_points, block)


def _signs(weight: Operation, parts: dict[str, Constant], shape: tuple[int, int]) -> NDArray[np.int8]:
    """-1 and 1 of the indices 0 and 1."""
    table = parts["table"].value
    if parts["codes"].type.kind != "uint1" or table.shape != (*shape, 2, 1):
        raise Unreadable(f"{weight.name}: a table {table.shape} of {parts['codes'].type.kind} for {shape} groups")
    if bool((table[..., 0] != np.array([-1, 1])).any()):
        raise Unreadable(f"{weight.name}: the table of its signs is not -1 and 1")
    return parts["codes"].value.astype(np.int8) * np.int8(2) - np.int8(1)


def _inner(function: Function, weight: Operation) -> Operation:
    """What gives both the mask and the numbers."""
    inner = layouts.producer(function, weight, "nonzero_data")
    if inner is None or [*weight.inputs["mask"], *weight.inputs["nonzero_data"]] != [*inner.outputs]:
        raise Unreadable(f"{weight.name}: its mask and its numbers are not those of one operation")
    return inner
