# SPDX-License-Identifier: Apache-2.0
"""The small graphs of a Core ML program that lengths alone decide, held to what they must compute by running them.

Which keys a query sees, by what angles heads turn, and where a step is written in the cache depend on the shapes of `inputIds`
and `causalMask` only. They are cut out and run by our interpreter at the beginning, in the middle and at the end of the cache:
whatever they are made of, their numbers are right or wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat import rope
from dlqat.mil.call import Unsupported
from dlqat.mil.interpreter import Interpreter
from dlqat.mil.program import Argument, Function, Package
from dlqat.runtime_tests.readers.contents import Unreadable, table
from dlqat.runtime_tests.readers.coreml.constants import dotted, literal

Array = NDArray[Any]
HIDDEN = -10000.0
"""What is added to a score that must not count is at most this: exp of it is 0 in float16, and it is finite."""


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens behind those of the cache."""

    past: int
    new: int

    @property
    def total(self) -> int:
        return self.past + self.new

    @property
    def positions(self) -> Array:
        return np.arange(self.past, self.total)


@dataclass(frozen=True, slots=True)
class _Mask:
    where: str
    value: str
    rows: int
    window: float


@dataclass(frozen=True, slots=True)
class _Place:
    where: str
    begin: str
    end: str
    seen: str
    layer: int
    kv: int
    width: int


@dataclass(eq=False)
class Plumbing:
    """What a forward takes besides hidden states, gathered while it is read; `check` runs it."""

    masks: list[_Mask] = field(default_factory=list[_Mask])
    places: list[_Place] = field(default_factory=list[_Place])
    angles: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """Cosines and sines, by name -> the rope whose tables they are rows of."""

    def mask(self, where: str, value: Argument, rows: int, window: float) -> None:
        """What is added to scores of `rows` heads below one another; a key further back than `window` is not seen."""
        self.masks.append(_Mask(where, str(value), rows, window))

    def place(self, where: str, begin: Argument, end: Argument, seen: Argument, shape: tuple[int, int, int]) -> None:
        """Where a step is written in a state, and what of it is seen; `shape`: layer, key-value heads, their size."""
        self.places.append(_Place(where, str(begin), str(end), str(seen), *shape))

    def rope(self, function: Function, cos: Argument, sin: Argument) -> str:
        """The name of the rope whose tables two values come from."""
        key = (str(cos), str(sin))
        if key not in self.angles:
            found = [_tables(function, value) for value in key]
            names = {rope.name_of(name) for pair in found for name in pair}
            kinds = [{table(name) for name in pair} for pair in found]
            if len(names) != 1 or kinds != [{"rope.cos"}, {"rope.sin"}]:
                raise Unreadable(f"{cos} and {sin}: are not cosines and sines of one rope")
            self.angles[key] = names.pop()
        return self.angles[key]

    def check(self, package: Package, function: Function) -> None:
        """Unreadable, naming the value, where its numbers are others."""
        wanted = {m.value for m in self.masks} | {v for key in self.angles for v in key}
        wanted |= {v for p in self.places for v in (p.begin, p.end, p.seen)}
        part = _Part(package, _cut(function, wanted))
        try:
            machine = Interpreter(part, "float16")  # pyright: ignore[reportArgumentType] # it asks for a function only
            for step in self._steps(function):
                values = machine.run({"inputIds": np.zeros((1, step.new), np.int32), "causalMask": _lengths(step)})
                found = {name: value.numpy() for name, value in values.items()}
                for fault in self._faults(step, found, function):
                    raise Unreadable(fault)
        except (Unsupported, RuntimeError, IndexError, ValueError) as error:
            raise Unreadable(
                f"masks, angles and places cannot be run ({' '.join(str(error).split())[:160]})"
            ) from error

    def _steps(self, function: Function) -> Iterator[Step]:
        context = function.inputs["keyCache"].shape[3] or 0
        windows = {int(m.window) for m in self.masks if np.isfinite(m.window)}
        yield from (Step(0, 1), Step(0, min(7, context)))
        yield from (Step(past, new) for past, new in ((3, 1), (3, 4)) if past + new <= context)
        yield from (Step(window - 1, 3) for window in windows if window + 2 <= context)
        yield Step(context - 1, 1)

    def _faults(self, step: Step, found: dict[str, Array], function: Function) -> Iterator[str]:
        said = f"with {step.new} tokens behind {step.past}"
        for mask in self.masks:
            if not _right_mask(found[mask.value], step, mask):
                yield f"{mask.where}: its mask does not hide what it must, {said}"
        for place in self.places:
            end = [place.layer + 1, 1, place.kv, step.total, place.width]
            right = ([place.layer, 0, 0, step.past, 0], end, end)
            if any(found[n].tolist() != r for n, r in zip((place.begin, place.end, place.seen), right, strict=True)):
                yield f"{place.where}: its cache is written or seen in another place, {said}"
        for (cos, sin), name in self.angles.items():
            halves = [_stored(function, rope.stored(name, what))[step.positions] for what in ("cos", "sin")]
            rows = [np.concatenate(pair, -1) for pair in ((halves[0], halves[0]), (-halves[1], halves[1]))]
            for value, wanted in zip((cos, sin), rows, strict=True):
                if not np.array_equal(found[value].reshape(-1, wanted.shape[1]), wanted.astype(np.float16)):
                    yield f"{value}: is not the rows of its rope's table, {said}"


@dataclass(frozen=True, slots=True)
class _Part:
    """A package of one function, for the interpreter."""

    package: Package
    whole: Function

    def function(self, name: str | None = None) -> Function:
        del name
        return self.whole


def _cut(function: Function, wanted: set[str]) -> Function:
    """What computes these values, and nothing else. Unreadable if a state or a parameter does."""
    needed, stack = set[str](), [*wanted]
    while stack:
        name = stack.pop()
        source = function.producer.get(name)
        if source is None or name in needed:
            continue
        if source.kind in ("read_state", "linear") or source.kind.startswith("constexpr_"):
            raise Unreadable(f"{source.name}: decides a mask, an angle or a place in the cache")
        needed.add(name)
        stack += source.names()
    operations = tuple(o for o in function.operations if any(name in needed for name in o.outputs))
    inputs = {name: kind for name, kind in function.inputs.items() if not kind.state}
    return replace(function, inputs=inputs, operations=operations, outputs=tuple(sorted(wanted)))


def _lengths(step: Step) -> Array:
    return np.zeros((1, 1, 1, step.total + 1), np.float16)


def _right_mask(found: Array, step: Step, mask: _Mask) -> bool:
    """[1, 1, rows * new, total], or the same broadcast: 0 where a key is seen, HIDDEN or less where it is not."""
    if found.shape != (1, 1, mask.rows * step.new, step.total):
        return False
    query, key = np.tile(step.positions, mask.rows)[:, None], np.arange(step.total)[None]
    seen = (key <= query) & (key > query - mask.window)
    values = found[0, 0]
    return bool((values[seen] == 0).all() and (values[~seen] <= HIDDEN).all() and np.isfinite(values).all())


def _tables(function: Function, value: str) -> Sequence[str]:
    """The stored tables that a value is made of."""
    found, stack = set[str](), [value]
    while stack:
        source = function.producer.get(stack.pop())
        if source is None:
            continue
        name = dotted(source.name)
        if source.kind == "const" and table(name) is not None:
            found.add(name)
        stack += source.names()
    return sorted(found)


def _stored(function: Function, name: str) -> Array:
    source = next((o for o in function.operations if o.kind == "const" and dotted(o.name) == name), None)
    if source is None:
        raise Unreadable(f"{name}: no such table")
    return np.asarray(literal(source).value)
