# SPDX-License-Identifier: Apache-2.0
"""The forward of a Core ML program as an expression, operation by operation in their order.

Operations that begin or end something known are anchors; what stands between two of them is matched as a whole, and an
anchor whose input was made by anything else is a fault:

    gather of a table by inputIds                          embed
    linear                                                 linear; add of NAME.bias its bias; gather of columns take
    mul by NAME.weight behind x * rsqrt(...) / peak        norm (coreml/builder.py says why it is so long)
    scaled_dot_product_attention                           attention behind rope, over the states: attention.py
    mul called capped, matmul with softmax                 cap, and attention with one: capped.py
    silu; gelu; mul; add; mul by a number called scaled    the same
    split of features                                      part
    cast between floats                                    the same numbers

Values that are no hidden state (positions, masks, angles) are run and compared by plumbing.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlqat.mil.program import Function, Operation, Package
from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.coreml import attention, capped
from dlqat.runtime_tests.readers.coreml.constants import dotted, real_bias
from dlqat.runtime_tests.readers.coreml.walk import Walk, is_float
from dlqat.runtime_tests.readers.expression import Node, biased, parted, times

INPUTS = {"inputIds", "causalMask", "keyCache", "valueCache"}
IDS = "inputIds"
SMALLEST_PEAK = 2.0**-6
"""The greatest number under which a norm may hold max|x| up: hidden states are far above it."""


def forward(package: Package, function: Function, used: set[str]) -> Node:
    """The logits. Unreadable at the first operation that has no meaning here."""
    if set(function.inputs) != INPUTS or function.outputs != ("logits",):
        raise Unreadable(f"inputs {', '.join(sorted(function.inputs))} and outputs {', '.join(function.outputs)}")
    found = Walk(function)
    for operation in function.operations:
        handler = HANDLERS.get(operation.kind)
        if handler is not None and (not operation.outputs or any(o in used for o in operation.outputs)):
            handler(found, operation)
    found.plumbing.check(package, function)
    return found.logits()


def _gather(w: Walk, op: Operation) -> None:
    table, labels = w.stored(op.inputs["x"][0]), w.stored(op.inputs["indices"][0])
    if table is not None and op.inputs["indices"] == (IDS,):
        w.says(op, axis=0)
        w.values[op.outputs[0]] = Node("embed", dotted(op.name), (Node("ids"),))
    elif table is None and labels is not None:
        w.says(op, axis=2)
        w.values[op.outputs[0]] = Node("take", labels, (w.hidden(op.name, op.inputs["x"][0]),))


def _linear(w: Walk, op: Operation) -> None:
    path = dotted(op.name)
    if "bias" in op.inputs:
        w.constant(op.inputs["bias"][0])  # one that is computed is explained by nothing
    own = real_bias(w.function, op)
    w.values[op.outputs[0]] = Node("linear", path, (w.hidden(path, op.inputs["x"][0]),), None, own)


def _cast(w: Walk, op: Operation) -> None:
    source, target = op.inputs["x"][0], op.outputs[0]
    for known in (w.values, w.parted, w.attended):
        if source in known and is_float(w.constant(op.inputs["dtype"][0])):
            known[target] = known[source]  # pyright: ignore[reportArgumentType] # of one kind each


def _add(w: Walk, op: Operation) -> None:
    a, b = (op.inputs[x][0] for x in "xy")
    if (bias := w.stored(b)) is not None and a in w.values:
        found = biased(w.values[str(a)], bias)
        if found is None:
            raise Unreadable(f"{op.name}: adds {bias} to {w.values[str(a)]}")
        w.values[op.outputs[0]] = found
    elif a in w.values or b in w.values:
        w.values[op.outputs[0]] = Node("add", "", (w.hidden(op.name, a), w.hidden(op.name, b)))


def _mul(w: Walk, op: Operation) -> None:
    x, y = (op.inputs[name][0] for name in "xy")
    gain = w.stored(y)
    if op.name.endswith("__capped"):
        inner, _ = capped.cap(w, op.outputs[0])
        w.values[op.outputs[0]] = Node("cap", dotted(op.name), (w.hidden(op.name, w.through(inner)),))
        return
    if gain is not None and gain.endswith(".weight"):
        _norm(w, op, gain)
    elif op.name.endswith("__scaled") and x in w.values:
        w.values[op.outputs[0]] = Node("scale", dotted(op.name), (w.values[str(x)],))
    elif x in w.values and y in w.values:
        w.values[op.outputs[0]] = times(w.values[str(x)], w.values[str(y)])


def _norm(w: Walk, op: Operation, gain: str) -> None:
    """x * (rsqrt(mean((x / peak)^2) + eps / peak^2) / peak) * gain, with peak = max|x|; eps is a fact (facts.py)."""
    scaled = w.made(w.through(op.inputs["x"][0]), "mul")
    x, factor = scaled.inputs["x"][0], w.made(scaled.inputs["y"][0], "real_div")
    root, peak = w.made(factor.inputs["x"][0], "rsqrt"), factor.inputs["y"][0]
    w.says(root, epsilon=0.0)
    mean = w.made(root.inputs["x"][0], "add")
    average = w.made(mean.inputs["x"][0], "reduce_mean")
    square = w.made(average.inputs["x"][0], "mul")
    small = w.made(square.inputs["x"][0], "real_div")
    floor = w.made(w.made(mean.inputs["y"][0], "mul").inputs["x"][0], "mul")
    share = w.made(floor.inputs["x"][0], "real_div")
    held = w.made(peak, "maximum")
    greatest = w.made(held.inputs["x"][0], "reduce_max")
    size = w.made(greatest.inputs["x"][0], "abs")
    for reduced in (average, greatest):
        w.says(reduced, axes=[-1], keep_dims=True)
    same = (
        square.inputs["x"] == square.inputs["y"]
        and floor.inputs["x"] == floor.inputs["y"]
        and small.inputs["x"] == size.inputs["x"] == (x,)
        and small.inputs["y"] == share.inputs["y"] == (peak,)
        and 0 < float(w.constant(held.inputs["y"][0])) <= SMALLEST_PEAK
    )
    if not same:
        raise Unreadable(f"{op.name}: is not x / sqrt(mean(x^2) + epsilon)")
    label = gain.removesuffix(".weight")
    if x in w.values:
        w.values[op.outputs[0]] = Node("norm", label, (w.values[str(x)],))
        return
    parted = w.made(x, "reshape")
    one, free, heads, width = w.reshape(parted)
    if (one, free) != (1, -1):
        raise Unreadable(f"{op.name}: heads parted as {w.reshape(parted)}")
    w.parted[op.outputs[0]] = Node("norm", label, (w.hidden(op.name, parted.inputs["x"][0]),)), heads, width


def _reshape(w: Walk, op: Operation) -> None:
    """Heads put together again, behind a norm of heads or attention."""
    source = op.inputs["x"][0]
    if source in w.parted:
        node, heads, width = w.parted[str(source)]
    else:
        turned = w.function.producer.get(str(source))
        before = w.function.producer.get(str(turned.inputs["x"][0])) if turned and turned.kind == "transpose" else None
        if turned is None or before is None or before.kind != "reshape" or before.inputs["x"][0] not in w.attended:
            return
        node, heads, width = w.attended[str(before.inputs["x"][0])]
        w.says(turned, perm=[0, 2, 1, 3])
        if w.reshape(before) != [1, heads, -1, width]:
            raise Unreadable(f"{before.name}: parts the heads of {node} as {w.reshape(before)}")
    if w.reshape(op) != [1, -1, heads * width]:
        raise Unreadable(f"{op.name}: puts the heads of {node} together as {w.reshape(op)}")
    w.values[op.outputs[0]] = node


def _one(kind: str, **wanted: Any) -> Any:
    def handler(w: Walk, op: Operation) -> None:
        w.says(op, **wanted)
        w.values[op.outputs[0]] = Node(kind, "", (w.hidden(op.name, op.inputs["x"][0]),))

    return handler


def _split(w: Walk, op: Operation) -> None:
    """A product that is several, cut; heads are cut as well, and rotation knows of it (attention.py)."""
    if op.inputs["x"][0] in w.values:
        w.says(op, axis=-1)
        sizes = np.asarray(w.constant(op.inputs["split_sizes"][0])).tolist()
        w.values.update(zip(op.outputs, parted(w.values[str(op.inputs["x"][0])], sizes), strict=True))


def _matmul(w: Walk, op: Operation) -> None:
    if (found := capped.attention(w, op)) is not None:
        attention.attention(w, found[0])


def _read_state(w: Walk, op: Operation) -> None:
    w.cells.setdefault(str(op.inputs["input"][0]), ["", "", ""])[2] = op.outputs[0]


def _write_state(w: Walk, op: Operation) -> None:
    cell = w.cells.setdefault(str(op.inputs["input"][0]), ["", "", ""])
    cell[:] = [cell[2], str(op.inputs["data"][0]), ""]
    w.writes += 1


HANDLERS = {
    "gather": _gather,
    "linear": _linear,
    "cast": _cast,
    "add": _add,
    "mul": _mul,
    "reshape": _reshape,
    "split": _split,
    "matmul": _matmul,
    "silu": _one("silu"),
    "gelu": _one("gelu", mode="TANH_APPROXIMATION"),
    "read_state": _read_state,
    "write_state": _write_state,
    "scaled_dot_product_attention": attention.attention,
}
"""Anchors. What is made by another operation is known only where one of these looks at it."""
