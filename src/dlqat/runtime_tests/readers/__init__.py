# SPDX-License-Identifier: Apache-2.0
"""What an artifact's own bytes say, one reader per format. A reader shares no code with the exporters."""

from __future__ import annotations

import importlib
from pathlib import Path

from dlqat.devices.artifact import PROGRAMS
from dlqat.quiet import quiet
from dlqat.runtime_tests.readers.reader import Contents, Reader, Unreadable


def _module(name: str) -> Reader:
    """The reader in a module of this package, imported when an artifact is read: each needs packages of its own."""

    def read(program: Path) -> Contents:
        with quiet():
            module = importlib.import_module(f"{__name__}.{name}")
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
    return READERS[form](program)
