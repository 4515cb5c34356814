# SPDX-License-Identifier: Apache-2.0
"""The versions that figures depend on, as reports record them."""

from __future__ import annotations

import importlib.metadata

PACKAGES = (
    "torch", "transformers", "compressed-tensors", "numpy", "onnx", "onnxruntime", "executorch", "coremltools", "lm_eval",
)  # fmt: skip


def installed() -> dict[str, str]:
    """Package -> version, of those that are here."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
