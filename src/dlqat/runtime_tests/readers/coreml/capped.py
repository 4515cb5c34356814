# SPDX-License-Identifier: Apache-2.0
"""Soft caps in a Core ML program: limit * tanh(x / limit), of logits and of the scores of attention.

Core ML's attention operator has none, so an attention with one stands there in parts, and is seen as that operator:

    matmul NAME <- softmax <- add (mask) <- cap <- matmul (query, key transposed)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dlqat.mil.program import Argument, Operation
from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.coreml.walk import Walk


def cap(w: Walk, value: Argument) -> tuple[Argument, float]:
    """What is capped, and the limit. Unreadable if `value` is made otherwise."""
    times = _made(w, value, "mul")
    divided = _made(w, _made(w, times.inputs["x"][0], "tanh").inputs["x"][0], "real_div")
    limit, other = w.constant(times.inputs["y"][0]), w.constant(divided.inputs["y"][0])
    if np.size(limit) != 1 or not np.array_equal(limit, other):
        raise Unreadable(f"{times.name}: multiplies by another number than it was divided by")
    return divided.inputs["x"][0], float(np.asarray(limit).item())


def attention(w: Walk, last: Operation) -> tuple[Operation, float] | None:
    """A product with softmax(scores), as the attention that it ends, and the limit of its scores; None for another product."""
    weights = w.function.producer.get(str(last.inputs["x"][0]))
    if weights is None or weights.kind != "softmax":
        return None
    masked = _made(w, weights.inputs["x"][0], "add")
    inner, limit = cap(w, masked.inputs["x"][0])
    scores = _made(w, inner, "matmul")
    if int(w.constant(weights.inputs["axis"][0])) not in (-1, 3):
        raise Unreadable(f"{weights.name}: over another axis than the keys")
    for product, turned in ((scores, {"transpose_x": False, "transpose_y": True}), (last, {})):
        for flag in ("transpose_x", "transpose_y"):
            given = product.inputs.get(flag)
            if bool(given and w.constant(given[0])) != turned.get(flag, False):
                raise Unreadable(f"{product.name}: {flag} is not as attention has it")
    parts = {
        "query": scores.inputs["x"],
        "key": scores.inputs["y"],
        "value": last.inputs["y"],
        "attn_mask": masked.inputs["y"],
    }
    return replace(last, kind="scaled_dot_product_attention", inputs=parts), limit


def _made(w: Walk, value: Argument, kind: str) -> Operation:
    return w.made(w.through(value), kind)
