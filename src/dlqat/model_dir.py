# SPDX-License-Identifier: Apache-2.0
"""Names of the files in a model_dir: what dlqat-train writes, and the others look for."""

from __future__ import annotations

ADAPTERS, RECORD = "adapters.safetensors", "dlqat.json"
"""The trained tensors, and what was asked for."""
