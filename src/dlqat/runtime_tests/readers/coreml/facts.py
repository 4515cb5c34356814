# SPDX-License-Identifier: Apache-2.0
"""What a Core ML program computes with besides parameters: epsilons, attention's window, rotary tables.

rsqrt <- mean + (a / peak)^2 b                                        epsilon = a^2 b (coreml/builder.py says why)
scaled_dot_product_attention <- mask with key <= query - window       its scale is head_dim ** -0.5: other ones are in the query
gather <- rope.cos, rope.sin                                          (coreml.py); which of them turns a layer's queries
mul NAME__scaled by a number                                          factor
NAME__capped, attention in parts                                      cap (capped.py)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dlqat.mil.program import Argument, Constant, Function, Operation
from dlqat.runtime_tests.readers.contents import Fact, Unreadable, table
from dlqat.runtime_tests.readers.coreml import capped
from dlqat.runtime_tests.readers.coreml.constants import dotted
from dlqat.runtime_tests.readers.coreml.walk import Walk


def facts(function: Function, operation: Operation) -> Iterator[Fact]:
    """The facts of one operation. Unreadable if it is built in a way that is not known."""
    where = operation.name
    match operation.kind:
        case "rsqrt":
            yield Fact("epsilon", where, np.array(_epsilon(function, operation), np.float32))
        case "matmul":
            if (found := capped.attention(Walk(function), operation)) is not None:
                whole, limit = found
                yield Fact("window", dotted(where), np.array(window(function, whole), np.float32))
                number, _ = _query(function, whole) or (1.0, 0)
                yield Fact("scale", where, np.array(number, np.float32))
                yield Fact("turns", dotted(where), _turns(function, whole))
                yield Fact("cap", dotted(where), np.array(limit, np.float32))
        case "mul" if where.endswith("__capped"):
            yield Fact("cap", dotted(where), np.array(capped.cap(Walk(function), operation.outputs[0])[1], np.float32))
        case "scaled_dot_product_attention":
            yield Fact("window", dotted(where), np.array(window(function, operation), np.float32))
            yield Fact("scale", where, np.array(_scale(function, operation), np.float32))
            yield Fact("turns", dotted(where), _turns(function, operation))
        case "mul" if where.endswith("__scaled"):
            yield Fact("factor", dotted(where), np.array(_number(function, operation.inputs["y"][0]), np.float32))
        case _:
            return


def _epsilon(function: Function, operation: Operation) -> float:
    mean = Walk(function).made(operation.inputs["x"][0], "add")
    floor = Walk(function).made(mean.inputs["y"][0], "mul")
    square = Walk(function).made(floor.inputs["x"][0], "mul")
    if square.inputs["x"] != square.inputs["y"]:
        raise Unreadable(f"{operation.name}: its epsilon is no square times a number")
    share = Walk(function).made(square.inputs["x"][0], "real_div")
    return _number(function, share.inputs["x"][0]) ** 2 * _number(function, floor.inputs["y"][0])


def _scale(function: Function, attention: Operation) -> float:
    """head_dim ** -0.5, times what queries were multiplied by before."""
    number, size = _query(function, attention) or (np.nan, 1)
    return number * size**-0.5


def _query(function: Function, attention: Operation) -> tuple[float, int] | None:
    """What queries were multiplied by, and the size of their heads; None: by nothing."""
    reshape = Walk(function).made(attention.inputs["query"][0], "reshape")
    times: Operation | None = function.producer.get(str(reshape.inputs["x"][0]))
    while times is not None and times.kind == "cast":
        times = function.producer.get(str(times.inputs["x"][0]))
    if times is None or times.kind != "mul" or times.name != f"{attention.name}__query":
        return None
    size = times.types[0].shape[-1]
    if size is None:
        raise Unreadable(f"{times.name}: heads of no fixed size")
    return _number(function, times.inputs["y"][0]), size


def _turns(function: Function, attention: Operation) -> NDArray[np.float32]:
    """The cosines of position 1 in the rotary table between the query and its linear; none if there is no table."""
    stack, seen = list(attention.inputs["query"]), set[str]()
    while stack:
        name = stack.pop()
        source = function.producer.get(name) if isinstance(name, str) else None
        if source is None or source.name in seen or source.kind == "linear":
            continue
        seen.add(source.name)
        stack += source.names()
        stored = function.producer.get(str(source.inputs["x"][0])) if source.kind == "gather" else None
        if stored is not None and stored.kind == "const" and table(dotted(stored.name)) == "rope.cos":
            literal = stored.inputs["val"][0]
            return literal.value[1].astype(np.float32) if isinstance(literal, Constant) else np.zeros(0, np.float32)
    return np.zeros(0, np.float32)


def window(function: Function, attention: Operation) -> float:
    """w of the comparison key <= query - w among what makes the mask; infinity if there is none."""
    stack, seen = list(attention.inputs.get("attn_mask", ())), set[str]()
    while stack:
        name = stack.pop()
        source = function.producer.get(name) if isinstance(name, str) else None
        if source is None or source.name in seen:
            continue
        seen.add(source.name)
        stack += source.names()
        if source.kind == "less_equal":
            return _number(function, Walk(function).made(source.inputs["y"][0], "sub").inputs["y"][0])
    return np.inf


def _number(function: Function, value: Argument) -> float:
    """A constant of one number, as a literal or by name."""
    found = Walk(function).constant(value)
    if np.size(found) != 1:
        raise Unreadable(
            f"{value if isinstance(value, str) else 'a constant'}: no single number, where one is expected"
        )
    return float(np.asarray(found).item())
