# SPDX-License-Identifier: Apache-2.0
"""What an artifact's own bytes say, one reader per format. A reader shares no code with the exporters."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from dlqat import formats
from dlqat.quiet import quiet
from dlqat.runtime_tests.readers.contents import Contents, Reader, Unreadable, Weight

T = TypeVar("T")


def read(program: Path) -> Contents:
    """What a program of an artifact multiplies with, from its bytes. Unreadable if they are damaged.

    The format's reader is imported here: each needs packages of its own."""
    with stumbling(program.name):
        with quiet():
            module = importlib.import_module(f"{__name__}.{formats.of(program)}.reader")
        found = cast("Reader", module.read)(program)
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
