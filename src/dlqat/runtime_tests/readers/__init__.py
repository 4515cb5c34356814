# SPDX-License-Identifier: Apache-2.0
"""What an artifact's own bytes say, one reader per format. A reader shares no code with the exporters."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dlqat.devices.artifact import PROGRAMS
from dlqat.quiet import quiet
from dlqat.runtime_tests.readers.contents import Contents, Reader, Unreadable, Weight

T = TypeVar("T")


def _module(name: str) -> Reader:
    """The reader in a module of this package, imported when an artifact is read: each needs packages of its own."""

    def read(program: Path) -> Contents:
        with quiet():
            module = importlib.import_module(f"{__name__}.{name}.reader")
        return module.read(program)

    return read


READERS: dict[str, Reader] = {
    "onnx": _module("onnx"),
    "executorch": _module("executorch"),
    "coreml": _module("coreml"),
}  # fmt: skip


def read(program: Path) -> Contents:
    """What a program of an artifact multiplies with, from its bytes. Unreadable if they are damaged."""
    form = PROGRAMS[program.suffix]
    if form not in READERS:
        raise Unreadable(f"{program.name}: there is no reader for {form}")
    with stumbling(program.name):
        found = READERS[form](program)
    return replace(found, weights=tuple(_guarded(weight) for weight in found.weights))


@contextmanager
def stumbling(what: str) -> Generator[None]:
    """Bytes that make a reader stumble (an index beyond a table, a length that is none) are Unreadable."""
    try:
        yield
    except (Unreadable, OSError):
        raise
    except Exception as error:
        raise Unreadable(
            f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}; it is damaged"
        ) from error


def _guarded(weight: Weight) -> Weight:
    """Its bytes are read later; the same holds then."""

    def guard(function: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            with stumbling(weight.name):
                return function()

        return run

    return replace(weight, load=guard(weight.load), program=guard(weight.program))
