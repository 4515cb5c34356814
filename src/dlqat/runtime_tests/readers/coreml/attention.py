# SPDX-License-Identifier: Apache-2.0
"""scaled_dot_product_attention of a Core ML program, with all that stands before it: heads, rotation, cache, mask.

query <- reshape (heads that share a key below one another) <- its scale <- turned <- transpose <- reshape <- q
key, value <- slice_by_index of the state <- write_state <- slice_update of what it was, with turned k, or v
mask, angles, places in the state: plumbing.py runs them
"""

from __future__ import annotations

import numpy as np

from dlqat.mil.program import Argument, Operation
from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.coreml import facts
from dlqat.runtime_tests.readers.coreml.constants import dotted
from dlqat.runtime_tests.readers.coreml.walk import Walk
from dlqat.runtime_tests.readers.expression import Node


def attention(w: Walk, op: Operation) -> None:
    """softmax(q k^T + mask) v over the states, queries that share a key-value head below one another."""
    path = dotted(op.name)
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
    """[1, heads, step, width], turned by its positions or not: (a, b) -> (a, b) * cos + (b, a) * sin.

    Where some numbers of a head turn only, the others are split off before and stand behind them again."""
    total, parts = w.made(value, "add", "transpose", "concat"), None
    if total.kind == "transpose":
        return _heads(w, total, width)
    if total.kind == "concat":
        w.says(total, axis=-1, interleave=False)
        first, rest = total.inputs["values"]
        parts, total = w.made(rest, "split"), w.made(first, "add")
        w.says(parts, axis=-1)
        if len(parts.outputs) != 2 or parts.outputs[1] != rest:
            raise Unreadable(f"{parts.name}: what does not turn by its position is not the end of a head")
    straight, crossed = (w.made(total.inputs[x][0], "mul") for x in "xy")
    x, swapped = straight.inputs["x"][0], w.made(crossed.inputs["x"][0], "concat")
    halves = w.made(swapped.inputs["values"][0], "split")
    w.says(swapped, axis=-1, interleave=False)
    w.says(halves, axis=-1, num_splits=2)
    if halves.inputs["x"] != (x,) or swapped.inputs["values"] != tuple(reversed(halves.outputs)):
        raise Unreadable(f"{total.name}: is not a rotation by positions")
    name = w.plumbing.rope(w.function, straight.inputs["y"][0], crossed.inputs["y"][0])
    if parts is not None:
        if x != parts.outputs[0]:
            raise Unreadable(f"{total.name}: turns other numbers than those that were split off")
        x = parts.inputs["x"][0]
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
