# SPDX-License-Identifier: Apache-2.0
"""Runs a function of a saved Core ML package, operation by operation, on any machine.

    float32   every float is float32 and nothing is rounded to the types that the program declares: what the program
              means, to be held against a float32 reference
    float16   what the program declares as float16 is rounded to float16 after every operation, sums inside one
              operation are float32: a model of float16 hardware, not Apple's kernels
    float64   every float is float64

Weights are expanded once, at load. States are values: read_state gives the present one, write_state another. A
slice_update of a state that nobody else still looks at happens in place, which saves copying the whole cache for
every layer; whether somebody does is decided by looking, so a program that reads a stale state gets a stale state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlqat.mil import constexpr, elementwise, neural, shapes
from dlqat.mil.call import Call, Compute, Unsupported
from dlqat.mil.program import Constant, Function, Operation, Package, Type

Precision = Literal["float32", "float16", "float64"]
FLOATS = ("fp16", "fp32", "fp64")
OPERATIONS: dict[str, Compute] = {
    **elementwise.OPERATIONS,
    **shapes.OPERATIONS,
    **neural.OPERATIONS,
    **constexpr.OPERATIONS,
}
STATES = ("read_state", "write_state")
MOVES = frozenset(shapes.OPERATIONS)
"""Operations that give numbers as they got them: nothing to round."""
State = dict[str, Tensor]


class Interpreter:
    """One function of a package, loaded. Unsupported names the first operation that is not known."""

    def __init__(self, package: Package, precision: Precision = "float32", function: str | None = None) -> None:
        self.function: Function = package.function(function)
        self.precision = precision
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        known = {*OPERATIONS, *STATES, "const"}
        for operation in self.function.operations:
            if operation.kind not in known:
                raise Unsupported(f"operation {operation.kind} ({operation.name}) is not known to the interpreter")
        self._constants: dict[str, Any] = {}
        self._literals: dict[int, Any] = {}
        self._expand()
        self._steps = [o for o in self.function.operations if o.outputs == () or o.outputs[0] not in self._constants]
        self._stored = {_storage(v) for v in self._constants.values() if isinstance(v, Tensor)}
        self._last_use = self._find_last_uses()
        self._in_place = set(self._find_updates())

    def make_state(self) -> State:
        """Every state of the function, zeros."""
        states = {n: t for n, t in self.function.inputs.items() if t.state}
        return {n: torch.zeros([d or 0 for d in t.shape], dtype=self.dtype) for n, t in states.items()}

    def run(self, inputs: Mapping[str, NDArray[Any]], state: State | None = None) -> dict[str, Tensor]:
        """Outputs by name; `state` is changed. Unsupported if an input is missing or an operation cannot be done."""
        state = self.make_state() if state is None else state
        wanted = {n: t for n, t in self.function.inputs.items() if not t.state}
        if missing := sorted(set(wanted) - set(inputs)):
            raise Unsupported(f"the program wants an input {missing[0]}")
        live: dict[str, Any] = {n: self._tensor(np.asarray(inputs[n]), t) for n, t in wanted.items()}
        with torch.inference_mode():
            for i, operation in enumerate(self._steps):
                live |= dict(self._compute(i, operation, live, state))
                for name in self._last_use.get(i, ()):
                    live.pop(name, None)
        return {name: self._look(name, live) for name in self.function.outputs}

    def _compute(
        self, i: int, operation: Operation, live: dict[str, Any], state: State
    ) -> Iterator[tuple[str, Tensor]]:
        if operation.kind == "read_state":
            yield operation.outputs[0], state[str(operation.inputs["input"][0])]
            return
        if operation.kind == "write_state":
            state[str(operation.inputs["input"][0])] = self._look(str(operation.inputs["data"][0]), live)
            return
        call = self._call(operation, live)
        if i in self._in_place and self._alone(call.tensor("x"), live, state):
            found = call.tensor("x")
            shapes.update(call, found)
        else:
            found = OPERATIONS[operation.kind](call)
        results = found if isinstance(found, tuple) else (found,)
        for name, kind, value in zip(operation.outputs, operation.types, results, strict=True):
            yield name, value if operation.kind in MOVES else self._rounded(value, kind)

    def _call(self, operation: Operation, live: Mapping[str, Any]) -> Call:
        def value(argument: str | Constant) -> Any:
            return self._look(argument, live) if isinstance(argument, str) else self._literal(argument)

        arguments = {name: tuple(value(a) for a in bound) for name, bound in operation.inputs.items()}
        return Call(operation.kind, arguments, self.dtype)

    def _look(self, name: str, live: Mapping[str, Any]) -> Any:
        return live[name] if name in live else self._constants[name]

    def _rounded(self, value: Tensor, kind: Type) -> Tensor:
        if kind.kind not in FLOATS:
            return value
        value = value.to(self.dtype)
        return value.half().to(self.dtype) if self.precision == "float16" and kind.kind == "fp16" else value

    def _tensor(self, array: NDArray[Any], kind: Type) -> Tensor:
        """An array from outside; a copy, as its memory may be read-only."""
        wide = array.astype(np.int64) if array.dtype.name in ("uint16", "uint32") else np.array(array)
        made = torch.from_numpy(wide)
        return self._rounded(made, kind) if kind.kind in FLOATS else made

    def _literal(self, constant: Constant) -> Any:
        """A literal argument. Small ones are kept; those of weights are used once."""
        if constant.blobs is None and id(constant) in self._literals:
            return self._literals[id(constant)]
        value = constant.value
        made = self._tensor(value, constant.type) if isinstance(value, np.ndarray) else value
        if constant.blobs is None:
            self._literals[id(constant)] = made
        return made

    def _expand(self) -> None:
        """Constants, and what is computed from nothing else by a constexpr operation."""
        for operation in self.function.operations:
            if operation.kind == "const":
                constant = operation.inputs["val"][0]
                assert isinstance(constant, Constant)
                self._constants[operation.outputs[0]] = self._literal(constant)
            elif operation.kind.startswith("constexpr_"):
                found = OPERATIONS[operation.kind](self._call(operation, {}))
                results = found if isinstance(found, tuple) else (found,)
                for name, kind, value in zip(operation.outputs, operation.types, results, strict=True):
                    self._constants[name] = self._rounded(value, kind)

    def _find_last_uses(self) -> dict[int, list[str]]:
        """Step -> the values that no later step and no output needs."""
        last: dict[str, int] = {}
        for i, operation in enumerate(self._steps):
            last |= dict.fromkeys((*operation.outputs, *operation.names()), i)
        found: dict[int, list[str]] = {}
        for name in sorted(set(last) - set(self.function.outputs)):
            found.setdefault(last[name], []).append(name)
        return found

    def _find_updates(self) -> Iterator[int]:
        """Steps that update a state as it was read, for the last time, and whose result is what is written next."""
        for i, operation in enumerate(self._steps):
            if operation.kind != "slice_update" or not isinstance(x := operation.inputs["x"][0], str):
                continue
            read = self.function.producer.get(x)
            if read is None or read.kind != "read_state" or x not in self._last_use.get(i, ()):
                continue
            cell = read.inputs["input"]
            touching = (o for o in self._steps[i + 1 :] if o.kind in STATES and o.inputs["input"] == cell)
            following = next(touching, None)
            if following is not None and following.inputs.get("data") == operation.outputs:
                yield i

    def _alone(self, x: Tensor, live: Mapping[str, Any], state: State) -> bool:
        """Whether x is seen only by its own name and by its own state."""
        place = _storage(x)
        seen = sum(_storage(v) == place for v in live.values() if isinstance(v, Tensor))
        return seen == 1 and sum(_storage(v) == place for v in state.values()) == 1 and place not in self._stored


def _storage(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
