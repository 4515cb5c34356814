# SPDX-License-Identifier: Apache-2.0
"""The forward of a Core ML program as an expression, operation by operation in their order.

Operations that begin or end something known are anchors; what stands between two of them is matched as a whole, and an
anchor whose input was made by anything else is a fault:

    gather of a table by inputIds                          embed
    linear                                                 linear; add of NAME.bias its bias; gather of columns take
    mul by NAME.weight behind x * rsqrt(...) / peak        norm (coreml/builder.py says why it is so long)
    scaled_dot_product_attention                           attention behind rope, over the states: attention.py
    silu; gelu; mul; add; mul by a number called scaled    the same
    cast between floats                                    the same numbers

Values that are no hidden state (positions, masks, angles) are run and compared by plumbing.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlqat.mil.program import Argument, Constant, Function, Operation, Package
from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.coreml import facts
from dlqat.runtime_tests.readers.coreml.plumbing import Plumbing
from dlqat.runtime_tests.readers.expression import Node, biased, times

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
        if not operation.outputs or any(o in used for o in operation.outputs):
            found.step(operation)
    found.plumbing.check(package, function)
    return found.logits()


class Walk:
    """What was understood so far: `values` by name; `parted` has those whose heads stand apart, with their shape."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.values: dict[str, Node] = {}
        self.parted: dict[str, tuple[Node, int, int]] = {}
        self.attended: dict[str, tuple[Node, int, int]] = {}
        self.plumbing = Plumbing()
        self.cells: dict[str, list[str]] = {}
        """State -> its value before the last write, what was written, and its value now, by name."""
        self.writes = self.explained = 0

    def logits(self) -> Node:
        if self.writes != self.explained:
            raise Unreadable(f"{self.writes} writes to the cache, of which {self.explained} are an attention's")
        return self.hidden("logits", "logits")

    def step(self, operation: Operation) -> None:
        handler = HANDLERS.get(operation.kind)
        if handler is not None:
            handler(self, operation)

    def hidden(self, where: str, value: Argument) -> Node:
        if not isinstance(value, str) or value not in self.values:
            made = self.function.producer.get(value) if isinstance(value, str) else None
            by = f", made by {made.kind} {made.name}" if made is not None else ""
            raise Unreadable(f"{where}: takes a value that config.json does not explain{by}")
        return self.values[value]

    def made(self, value: Argument, *kinds: str) -> Operation:
        """The operation that makes a value."""
        found = self.function.producer.get(value) if isinstance(value, str) else None
        if found is None or found.kind not in kinds:
            what = f"{found.kind} {found.name}" if found is not None else "a constant or an input"
            raise Unreadable(f"{what} stands where {' or '.join(kinds)} is expected")
        return found

    def through(self, value: Argument) -> Argument:
        """What was cast from one float to another."""
        while (found := self.function.producer.get(value) if isinstance(value, str) else None) is not None:
            if found.kind != "cast" or not _float(self.constant(found.inputs["dtype"][0])):
                break
            value = found.inputs["x"][0]
        return value

    def constant(self, value: Argument) -> Any:
        """The value of a constant; Unreadable if it is computed."""
        if isinstance(value, Constant):
            return value.value
        literal = self.made(value, "const").inputs["val"][0]
        if not isinstance(literal, Constant):
            raise Unreadable(f"{value}: a constant without a value")
        return literal.value

    def stored(self, value: Argument) -> str | None:
        """The path of a constant; None if the value is computed."""
        found = self.function.producer.get(value) if isinstance(value, str) else None
        constant = found is not None and (found.kind == "const" or found.kind.startswith("constexpr_"))
        return found.name.replace("__", ".") if found is not None and constant else None

    def says(self, operation: Operation, **wanted: Any) -> None:
        """Unreadable unless constant arguments are these; one that is missing is the operator's own default."""
        for name, value in wanted.items():
            given = operation.inputs.get(name)
            found = np.asarray(self.constant(given[0])).tolist() if given else None
            if found != value:
                raise Unreadable(f"{operation.kind} {operation.name}: {name} is {found}, where {value} is expected")

    def reshape(self, operation: Operation) -> list[int]:
        return [int(n) for n in np.asarray(self.constant(operation.inputs["shape"][0])).tolist()]


def _float(kind: Any) -> bool:
    return kind in ("fp16", "fp32")


def _gather(w: Walk, op: Operation) -> None:
    table, labels = w.stored(op.inputs["x"][0]), w.stored(op.inputs["indices"][0])
    if table is not None and op.inputs["indices"] == (IDS,):
        w.says(op, axis=0)
        w.values[op.outputs[0]] = Node("embed", op.name.replace("__", "."), (Node("ids"),))
    elif table is None and labels is not None:
        w.says(op, axis=2)
        w.values[op.outputs[0]] = Node("take", labels, (w.hidden(op.name, op.inputs["x"][0]),))


def _linear(w: Walk, op: Operation) -> None:
    bias, path = op.inputs.get("bias"), op.name.replace("__", ".")
    own = bias is not None and (w.stored(bias[0]) == f"{path}.bias" or bool(np.any(w.constant(bias[0]))))
    w.values[op.outputs[0]] = Node("linear", path, (w.hidden(path, op.inputs["x"][0]),), None, own)


def _cast(w: Walk, op: Operation) -> None:
    source, target = op.inputs["x"][0], op.outputs[0]
    for known in (w.values, w.parted, w.attended):
        if source in known and _float(w.constant(op.inputs["dtype"][0])):
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
    if gain is not None and gain.endswith(".weight"):
        _norm(w, op, gain)
    elif op.name.endswith("__scaled") and x in w.values:
        w.values[op.outputs[0]] = Node("scale", op.name.replace("__", "."), (w.values[str(x)],))
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


def _read_state(w: Walk, op: Operation) -> None:
    w.cells.setdefault(str(op.inputs["input"][0]), ["", "", ""])[2] = op.outputs[0]


def _write_state(w: Walk, op: Operation) -> None:
    cell = w.cells.setdefault(str(op.inputs["input"][0]), ["", "", ""])
    cell[:] = [cell[2], str(op.inputs["data"][0]), ""]
    w.writes += 1


def _attention(w: Walk, op: Operation) -> None:
    """softmax(q k^T + mask) v over the states, queries that share a key-value head below one another."""
    path = op.name.replace("__", ".")
    rows = w.made(op.inputs["query"][0], "reshape")
    one, kv, free, width = w.reshape(rows)
    q, heads = _query(w, op, rows.inputs["x"][0], width)
    if (one, free) != (1, -1) or heads % kv:
        raise Unreadable(f"{path}: queries of {heads} heads stand as {w.reshape(rows)}")
    k, layer = _cached(w, path, op.inputs["key"][0], "keyCache", kv, width)
    v, other = _cached(w, path, op.inputs["value"][0], "valueCache", kv, width)
    if layer != other:
        raise Unreadable(f"{path}: keys of layer {layer} and values of layer {other}")
    w.plumbing.mask(path, op.inputs["attn_mask"][0], heads // kv, facts.window(w.function, op))
    w.attended[op.outputs[0]] = Node("attention", f"{layer} {heads}/{kv}", (q, k, v)), heads, width


def _query(w: Walk, op: Operation, value: Argument, width: int) -> tuple[Node, int]:
    """The query and its heads; a factor on it is the scale, which is a fact."""
    value = w.through(value)
    found = w.function.producer.get(str(value))
    if found is not None and found.kind == "mul" and found.name == f"{op.name}__query":
        value = w.through(found.inputs["x"][0])
    return _turned(w, value, width)


def _turned(w: Walk, value: Argument, width: int) -> tuple[Node, int]:
    """[1, heads, step, width], turned by its positions or not: (a, b) -> (a, b) * cos + (b, a) * sin."""
    total = w.made(value, "add", "transpose")
    if total.kind == "transpose":
        return _heads(w, total, width)
    straight, crossed = (w.made(total.inputs[x][0], "mul") for x in "xy")
    x, swapped = straight.inputs["x"][0], w.made(crossed.inputs["x"][0], "concat")
    halves = w.made(swapped.inputs["values"][0], "split")
    w.says(swapped, axis=-1, interleave=False)
    w.says(halves, axis=-1, num_splits=2)
    if halves.inputs["x"] != (x,) or swapped.inputs["values"] != tuple(reversed(halves.outputs)):
        raise Unreadable(f"{total.name}: is not a rotation by positions")
    name = w.plumbing.rope(w.function, straight.inputs["y"][0], crossed.inputs["y"][0])
    node, heads = _heads(w, w.made(x, "transpose"), width)
    return Node("rope", name, (node,)), heads


def _heads(w: Walk, turned: Operation, width: int) -> tuple[Node, int]:
    """[1, step, heads * width] as [1, heads, step, width]."""
    w.says(turned, perm=[0, 2, 1, 3])
    parted = w.made(turned.inputs["x"][0], "reshape")
    shape = w.reshape(parted)
    if len(shape) != 4 or shape[:2] != [1, -1] or shape[3] != width:
        raise Unreadable(f"{parted.name}: parts heads as {shape}")
    return w.hidden(parted.name, parted.inputs["x"][0]), shape[2]


def _cached(w: Walk, path: str, value: Argument, state: str, kv: int, width: int) -> tuple[Node, int]:
    """What a layer attends to, its new part written behind the old one; and the layer's number in the state."""
    seen = w.made(value, "slice_by_index")
    before, written, now = w.cells.get(state, ["", "", ""])
    update = w.made(written, "slice_update")
    if seen.inputs["x"] != (now,) or update.inputs["x"] != (before,) or not before:
        raise Unreadable(f"{path}: does not attend to {state} as it was just written")
    w.says(seen, squeeze_mask=[True, False, False, False, False])
    first = [int(n) for n in np.asarray(w.constant(seen.inputs["begin"][0])).tolist()]
    if first[1:] != [0, 0, 0, 0] or any(name in seen.inputs for name in ("begin_mask", "end_mask", "stride")):
        raise Unreadable(f"{path}: attends to {state} from {first}")
    w.plumbing.place(
        path, update.inputs["begin"][0], update.inputs["end"][0], seen.inputs["end"][0], (first[0], kv, width)
    )
    new = w.made(update.inputs["update"][0], "expand_dims")
    w.says(new, axes=[0])
    node, heads = _turned(w, new.inputs["x"][0], width)
    if heads != kv:
        raise Unreadable(f"{path}: {heads} heads are kept in {state}, where queries share {kv}")
    w.explained += 1
    return node, first[0]


HANDLERS = {
    "gather": _gather,
    "linear": _linear,
    "cast": _cast,
    "add": _add,
    "mul": _mul,
    "reshape": _reshape,
    "silu": _one("silu"),
    "gelu": _one("gelu", mode="TANH_APPROXIMATION"),
    "read_state": _read_state,
    "write_state": _write_state,
    "scaled_dot_product_attention": _attention,
}
"""Anchors. What is made by another operation is known only where one of these looks at it."""
