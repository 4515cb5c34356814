# SPDX-License-Identifier: Apache-2.0
"""A cut linear of Core ML: a program travels as bytes and a package is a folder, so it comes as a zip file."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unpacked(program: bytes) -> Generator[Path]:
    """The package in a zip file (runtime_tests.readers.coreml_cut writes it), as a folder while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(program)).extractall(folder)
        yield Path(folder) / "linear.mlpackage"
