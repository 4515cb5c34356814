# SPDX-License-Identifier: Apache-2.0
"""Scripts that fetch what devices need: `dlqat-devices --set-up NAME`. Nothing of the system is changed."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Where the scripts put things: $DLQAT_DEVICES, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DLQAT_DEVICES") or cache / "dlqat" / "devices").absolute()
