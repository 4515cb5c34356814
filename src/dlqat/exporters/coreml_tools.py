# SPDX-License-Identifier: Apache-2.0
"""coremltools, imported without the dozen remarks it makes about what Linux does not have, and without its litter."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from dlqat.quiet import quiet

with quiet():
    import coremltools
    from coremltools.converters.mil import Builder

ct: Any = coremltools
mb: Any = Builder  # its operations are attributes made at import


@contextlib.contextmanager
def temporary_in(folder: Path) -> Generator[None]:
    """Temporary files go into `folder`, and are gone when the block ends.

    coremltools writes the whole model into one before it is saved; of an export that is killed it would stay in TMPDIR
    for good, while a draft is swept by the next export."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=folder) as place:
        tempfile.tempdir = place
        try:
            yield
        finally:
            tempfile.tempdir = before
