# SPDX-License-Identifier: Apache-2.0
"""The kinds of artifacts: one line here, and a folder of the same name wherever one is written or read.

exporters/NAME/target.py                    writes it
runtime_tests/readers/NAME/reader.py        reads its bytes for the proof
a device with NAME in its `formats`         runs it; devices/all.py has the first one as the default
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Format:
    """`pip install 'dlqat[NAME]'` brings both kinds of packages."""

    suffix: str
    """Of the program, by which an artifact is told."""
    written_with: tuple[str, ...]
    """Distributions whose versions manifest.json states, beside torch."""
    run_with: tuple[str, ...]
    """Distributions whose versions a report states."""
    is_folder: bool = False
    """Whether the program is a folder, not a file."""
    common: bool = False
    """Whether files of other kinds have the suffix, too: manifest.json must then name the program."""


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnx-ir"), ("onnx", "onnxruntime")),
    "executorch": Format(".pte", ("executorch",), ("executorch",)),
    "coreml": Format(".mlpackage", ("coremltools", "numpy"), ("coremltools",), is_folder=True),
    "gguf": Format(".gguf", ("gguf",), ()),
    "mlx": Format(".safetensors", (), (), common=True),
}
SUFFIXES = {form.suffix: name for name, form in FORMATS.items()}


def of(program: Path) -> str:
    """The name of a program's format."""
    return SUFFIXES[program.suffix]
