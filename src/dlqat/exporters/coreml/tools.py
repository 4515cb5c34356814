# SPDX-License-Identifier: Apache-2.0
"""coremltools, imported without the dozen remarks it makes about what Linux does not have, and without its litter."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.quiet import quiet

with quiet():
    import coremltools
    from coremltools.converters.mil import Builder

ct: Any = coremltools
mb: Any = Builder  # its operations are attributes made at import
_SMALL = 1 << 16


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
        except RuntimeError as error:  # its writer in C++ does not say why the disk refused
            if "FileWriter" not in str(error):
                raise
            said = f"coremltools cannot write its weights ({error})"
            raise OSError(errno.ENOSPC, said, str(folder)) from error
        finally:
            tempfile.tempdir = before


def mapped(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in an unnamed file, mapped: coremltools holds every constant until it writes the program, a byte for each
    of 4 bits."""
    if array.nbytes < _SMALL:
        return array
    with tempfile.TemporaryFile() as file:
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        return np.memmap(file, array.dtype, "r", shape=array.shape)
