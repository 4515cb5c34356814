# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file computes with besides parameters: epsilons, attention's scale and window, rotary positions.

RMSNormalization, (Skip)SimplifiedLayerNormalization     attribute epsilon
GroupQueryAttention                                      attributes scale, local_window_size; tables as inputs 7, 8
Attention                                                attribute scale; the window that its mask has when it is run
RotaryEmbedding <- (times an amplitude <-) Cos, Sin <- positions * frequencies
Mul <- NAME.factor; Div <- NAME.limit
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dlqat.runtime_tests.readers.contents import ROPE, Fact, Unreadable
from dlqat.runtime_tests.readers.onnx.file import OnnxFile, attributes
from dlqat.runtime_tests.readers.onnx.plumbing import Plumbing

NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
KNOWN = {
    **{norm: {"axis", "epsilon", "stash_type"} for norm in NORMS},
    "Attention": {"q_num_heads", "kv_num_heads", "scale", "softcap"},
    "GroupQueryAttention": {"num_heads", "kv_num_heads", "scale", "do_rotary", "local_window_size", "softcap"},
    "RotaryEmbedding": {"num_heads", "rotary_embedding_dim"},
    "Mul": set[str](),
    "Div": set[str](),
}
"""Attributes that the reader can explain; any other could change the numbers."""


def facts(file: OnnxFile, node: Any, plumbing: Plumbing) -> Iterator[Fact]:
    """The facts of one node. Unreadable if it has settings that are not known."""
    if node.op_type not in KNOWN:
        return
    found = attributes(node)
    if odd := sorted(set(found) - KNOWN[node.op_type]):
        raise Unreadable(f"{node.name}: {node.op_type} has the attribute {odd[0]}, which the reader does not know")
    if found.get("softcap"):
        yield _fact("cap", node, found["softcap"])
    match node.op_type:
        case "GroupQueryAttention":
            window = found.get("local_window_size", -1)
            yield _fact("scale", node, found.get("scale"))
            yield _fact("window", node, window if window > 0 else np.inf)
            if found.get("do_rotary"):
                yield from _tables(file, node)
        case "Mul":
            if (name := file.factor(node)) is not None:
                yield Fact("factor", name, file.floats(f"{name}.factor").reshape(()))
        case "Div":
            if (name := file.limit(node)) is not None:
                yield Fact("cap", name, file.floats(f"{name}.limit").reshape(()))
        case "Attention":
            yield _fact("scale", node, found.get("scale"))
            yield _fact("window", node, plumbing.window(node.input[3]))
        case "RotaryEmbedding":
            yield from _frequencies(file, node)
        case _:
            yield _fact("epsilon", node, found.get("epsilon"))


def _fact(kind: Any, node: Any, value: float | None) -> Fact:
    return Fact(kind, node.name, np.array(np.nan if value is None else value, np.float32))


def _tables(file: OnnxFile, node: Any) -> Iterator[Fact]:
    for kind, name in zip(ROPE, node.input[7:9], strict=True):
        if name not in file.initializers:
            raise Unreadable(f"{node.name}: its rotary table {name!r} is not stored, so it cannot be compared")
        yield Fact(kind, name, file.floats(name))


def _frequencies(file: OnnxFile, node: Any) -> Iterator[Fact]:
    """Of both its tables: they must be the cosine and the sine of one product with stored frequencies."""
    for name, operator in zip(node.input[1:3], ("Cos", "Sin"), strict=True):
        frequencies, amplitude = turning(file, node, name, operator)
        yield Fact("rope.frequencies", frequencies, file.floats(frequencies))
        if amplitude is not None:
            yield Fact("rope.amplitude", amplitude, file.floats(amplitude).reshape(()))


def turning(file: OnnxFile, node: Any, name: str, operator: str) -> tuple[str, str | None]:
    """The names of the stored frequencies behind a table of `node`, and of the stored number that multiplies it, if there is one."""
    turn, amplitude = file.producer.get(name), None
    if turn is not None and turn.op_type == "Mul":
        numbers = [n for n in turn.input if n in file.initializers and file.array(n).size == 1]
        inner = [n for n in turn.input if n not in file.initializers]
        turn, amplitude = (file.producer.get(inner[0]), numbers[0]) if len(numbers) == len(inner) == 1 else (None, None)
    angles = file.producer.get(turn.input[0]) if turn is not None and turn.op_type == operator else None
    stored = [n for n in angles.input if n in file.initializers] if angles is not None else []
    if angles is None or angles.op_type != "Mul" or len(stored) != 1:
        raise Unreadable(f"{node.name}: {name} is no {operator} of positions times stored frequencies")
    return stored[0], amplitude
