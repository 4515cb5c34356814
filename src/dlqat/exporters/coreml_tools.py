# SPDX-License-Identifier: Apache-2.0
"""coremltools without its talk: at import it logs a dozen remarks about what Linux does not have, and it draws bars.

What it raises is not held back.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator
from typing import Any


@contextlib.contextmanager
def silent() -> Generator[None]:
    """Nothing on stderr, no warnings, no logs below errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


with silent():
    import coremltools
    from coremltools.converters.mil import Builder

ct: Any = coremltools
mb: Any = Builder  # its operations are attributes made at import
