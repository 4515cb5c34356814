# SPDX-License-Identifier: Apache-2.0
"""Other packages without their talk: bars that none of their switches turn off, remarks about themselves at import.

What the user wants to see, our commands show. What they raise is not held back.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator

NOISY = ("torchao", "torch.utils._pytree")
"""Where torchao is installed, transformers imports it, and it warns of kernels for GPUs that are not here."""


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Nothing on stderr, no warnings, no logs below errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def hush(*names: str) -> None:
    """Only errors from these loggers (and NOISY), from here on."""
    for name in (*NOISY, *names):
        logging.getLogger(name).setLevel(logging.ERROR)
