# SPDX-License-Identifier: Apache-2.0
"""Soft caps in a Core ML program: limit * tanh(x / limit), of logits and of the scores of attention.

Core ML's attention operator has none, so an attention with one stands there in parts, and is seen as that operator:

    matmul NAME <- softmax <- add (mask) <- cap <- matmul (query, key transposed)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dlqat.mil.program import Argument, Constant, Function, Operation
from dlqat.runtime_tests.readers.contents import Unreadable


def cap(function: Function, value: Argument) -> tuple[Argument, float]:
    """What is capped, and the limit. Unreadable if `value` is made otherwise."""
    times = _made(function, value, "mul")
    divided = _made(function, _made(function, times.inputs["x"][0], "tanh").inputs["x"][0], "real_div")
    limit, other = _constant(function, times.inputs["y"][0]), _constant(function, divided.inputs["y"][0])
    if np.size(limit) != 1 or not np.array_equal(limit, other):
        raise Unreadable(f"{times.name}: multiplies by another number than it was divided by")
    return divided.inputs["x"][0], float(np.asarray(limit).item())


def attention(function: Function, last: Operation) -> tuple[Operation, float] | None:
    """A product with softmax(scores), as the attention that it ends, and the limit of its scores; None for another product."""
    weights = function.producer.get(str(last.inputs["x"][0]))
    if weights is None or weights.kind != "softmax":
        return None
    masked = _made(function, weights.inputs["x"][0], "add")
    inner, limit = cap(function, _through(function, masked.inputs["x"][0]))
    scores = _made(function, inner, "matmul")
    if int(_constant(function, weights.inputs["axis"][0])) not in (-1, 3):
        raise Unreadable(f"{weights.name}: over another axis than the keys")
    for product, turned in ((scores, {"transpose_x": False, "transpose_y": True}), (last, {})):
        for flag in ("transpose_x", "transpose_y"):
            given = product.inputs.get(flag)
            if bool(given and _constant(function, given[0])) != turned.get(flag, False):
                raise Unreadable(f"{product.name}: {flag} is not as attention has it")
    parts = {
        "query": scores.inputs["x"],
        "key": scores.inputs["y"],
        "value": last.inputs["y"],
        "attn_mask": masked.inputs["y"],
    }
    return replace(last, kind="scaled_dot_product_attention", inputs=parts), limit


def _through(function: Function, value: Argument) -> Argument:
    """What was cast; to what type a number is rounded is not a reader's matter."""
    found = function.producer.get(value) if isinstance(value, str) else None
    return _through(function, found.inputs["x"][0]) if found is not None and found.kind == "cast" else value


def _made(function: Function, value: Argument, kind: str) -> Operation:
    value = _through(function, value)
    found = function.producer.get(value) if isinstance(value, str) else None
    if found is None or found.kind != kind:
        raise Unreadable(
            f"{value if isinstance(value, str) else 'a constant'}: made by no {kind}, where a cap is expected"
        )
    return found


def _constant(function: Function, value: Argument) -> Any:
    literal = value if isinstance(value, Constant) else _made(function, value, "const").inputs["val"][0]
    if not isinstance(literal, Constant):
        raise Unreadable(f"{value}: is computed, where a constant is expected")
    return literal.value
