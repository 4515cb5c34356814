# SPDX-License-Identifier: Apache-2.0
"""Names and stored constants of a Core ML program, as every part of the reader takes them."""

from __future__ import annotations

from dlqat.mil.program import Constant, Function, Operation
from dlqat.runtime_tests.readers.contents import Unreadable


def dotted(name: str) -> str:
    """A MIL name as the path that it stands for."""
    return name.replace("__", ".")


def literal(source: Operation) -> Constant:
    """The value of a const operation."""
    found = source.inputs["val"][0]
    if not isinstance(found, Constant):
        raise Unreadable(f"{source.name}: a constant without a value")
    return found


def claimed_bias(path: str, source: Operation) -> bool:
    """Not the zeros that coremltools gives a linear without a bias."""
    return dotted(source.name) == f"{path}.bias" or bool(literal(source).value.any())


def real_bias(function: Function, operation: Operation) -> bool:
    """Whether a linear adds a bias."""
    if "bias" not in operation.inputs:
        return False
    bound = operation.inputs["bias"][0]
    source = function.producer.get(bound) if isinstance(bound, str) else None
    return source is None or claimed_bias(dotted(operation.name), source)
