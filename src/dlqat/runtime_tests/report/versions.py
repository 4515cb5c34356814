# SPDX-License-Identifier: Apache-2.0
"""The versions that figures depend on, as reports record them."""

from __future__ import annotations

import importlib.metadata

from dlqat import __version__
from dlqat.formats import FORMATS

PACKAGES = (
    *("torch", "transformers", "compressed-tensors", "numpy"),
    *(package for form in FORMATS.values() for package in form.run_with),
    "lm_eval",
)


def installed() -> dict[str, str]:
    """Package -> version, of those that are here."""
    found = {"dlqat": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
