# SPDX-License-Identifier: Apache-2.0
"""Attention of an ONNX file, and the rotation before it, as nodes of the expression (expression.py)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dlqat import rope
from dlqat.runtime_tests.readers.contents import Unreadable, parts
from dlqat.runtime_tests.readers.expression import Node, parted
from dlqat.runtime_tests.readers.onnx.facts import turning
from dlqat.runtime_tests.readers.onnx.file import attributes

if TYPE_CHECKING:
    from dlqat.runtime_tests.readers.onnx.expression import Forward

PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")


def turned(f: Forward, node: Any) -> None:
    stored, amplitude = turning(f.file, node, node.input[1], "Cos")
    frequencies = f.file.floats(stored)
    if attributes(node).get("rotary_embedding_dim", 2 * len(frequencies)) != 2 * len(frequencies):
        raise Unreadable(f"{node.name}: turns other numbers of a head than there are frequencies for")
    by = 1.0 if amplitude is None else float(f.file.floats(amplitude).item())
    f.plumbing.angles(node.input[1], node.input[2], frequencies, by)
    f.values[node.output[0]] = Node("rope", rope.name_of(stored), tuple(f.inputs(node, 1)))


def attention(f: Forward, node: Any) -> None:
    found = attributes(node)
    label = f"{_layer(node, 4)} {found.get('q_num_heads')}/{found.get('kv_num_heads')}"
    f.values[node.output[0]] = Node("attention", label, tuple(f.inputs(node, 3)))


def grouped(f: Forward, node: Any) -> None:
    """GroupQueryAttention: rotates by itself; q, k and v apart, or as one product of three layers."""
    found = attributes(node)
    q = f.inputs(node, 1)[0]
    names = parts(q.label) if q.kind == "linear" else ()
    if not node.input[1] and len(names) == 3:
        q, k, v = (Node("linear", name, q.inputs, None, q.biased) for name in names)
    elif not node.input[1]:
        size = f.file.cache_width(node.input[3])
        q, k, v = parted(q, [size * found[key] for key in ("num_heads", "kv_num_heads", "kv_num_heads")])
    else:
        q, k, v = f.inputs(node, 3)
    rotates = found.get("do_rotary")
    if (rotates, len(node.input)) not in ((0, 7), (1, 9)):
        raise Unreadable(
            f"{node.name}: GroupQueryAttention with do_rotary {rotates} and {len(node.input)} inputs, which the reader "
            "does not know"
        )
    if rotates:
        names = {rope.name_of(name) for name in node.input[7:9]}
        if len(names) != 1:
            raise Unreadable(f"{node.name}: turns by {' and '.join(node.input[7:9])}: two different ropes")
        q, k = (Node("rope", next(iter(names)), (x,)) for x in (q, k))
    f.plumbing.lengths(node.input[5], node.input[6])
    label = f"{_layer(node, 3)} {found.get('num_heads')}/{found.get('kv_num_heads')}"
    f.values[node.output[0]] = Node("attention", label, (q, k, v))


def _layer(node: Any, first: int) -> str:
    """The layer whose cache it continues: keys and values of one number, in and out."""
    given = [PAST.fullmatch(name) for name in node.input[first : first + 2]]
    layers = {m[1] for m in given if m}
    wanted = [(f"past_key_values.{i}.{x}", f"present.{i}.{x}") for i in layers for x in ("key", "value")]
    if list(zip(node.input[first : first + 2], node.output[1:3], strict=False)) != wanted:
        raise Unreadable(
            f"{node.name}: continues {', '.join(node.input[first : first + 2])} as {', '.join(node.output[1:])}"
        )
    return layers.pop()
