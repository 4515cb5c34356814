# SPDX-License-Identifier: Apache-2.0
"""What an artifact's own bytes say, one reader per format. A reader shares no code with the exporters."""

from __future__ import annotations

from pathlib import Path

from dlqat.devices.artifact import PROGRAMS
from dlqat.runtime_tests.readers.coreml import read as read_coreml
from dlqat.runtime_tests.readers.onnx import read as read_onnx
from dlqat.runtime_tests.readers.reader import Contents, Reader, Unreadable

READERS: dict[str, Reader] = {
    "onnx": read_onnx,
    "coreml": read_coreml,
}  # fmt: skip


def read(program: Path) -> Contents:
    """What a program of an artifact multiplies with, from its bytes. Unreadable if they are damaged."""
    form = PROGRAMS[program.suffix]
    if form not in READERS:
        raise Unreadable(f"{program.name}: there is no reader for {form}")
    return READERS[form](program)
