# SPDX-License-Identifier: Apache-2.0
"""What is understood of a Core ML program so far, and how its constants and the makers of its values are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlqat.mil.program import Argument, Constant, Function, Operation
from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.coreml.constants import dotted, literal
from dlqat.runtime_tests.readers.coreml.plumbing import Plumbing
from dlqat.runtime_tests.readers.expression import Node


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
            if found.kind != "cast" or not is_float(self.constant(found.inputs["dtype"][0])):
                break
            value = found.inputs["x"][0]
        return value

    def constant(self, value: Argument) -> Any:
        """The value of a constant; Unreadable if it is computed."""
        if isinstance(value, Constant):
            return value.value
        return literal(self.made(value, "const")).value

    def stored(self, value: Argument) -> str | None:
        """The path of a constant; None if the value is computed."""
        found = self.function.producer.get(value) if isinstance(value, str) else None
        constant = found is not None and (found.kind == "const" or found.kind.startswith("constexpr_"))
        return dotted(found.name) if found is not None and constant else None

    def says(self, operation: Operation, **wanted: Any) -> None:
        """Unreadable unless constant arguments are these; one that is missing is the operator's own default."""
        for name, value in wanted.items():
            given = operation.inputs.get(name)
            found = np.asarray(self.constant(given[0])).tolist() if given else None
            if found != value:
                raise Unreadable(f"{operation.kind} {operation.name}: {name} is {found}, where {value} is expected")

    def reshape(self, operation: Operation) -> list[int]:
        return [int(n) for n in np.asarray(self.constant(operation.inputs["shape"][0])).tolist()]


def is_float(kind: Any) -> bool:
    """Whether a cast to this type changes nothing but the rounding."""
    return kind in ("fp16", "fp32")
