# SPDX-License-Identifier: Apache-2.0
"""coremltools, imported without the dozen remarks it makes about what Linux does not have."""

from __future__ import annotations

from typing import Any

from dlqat.quiet import quiet

with quiet():
    import coremltools
    from coremltools.converters.mil import Builder

ct: Any = coremltools
mb: Any = Builder  # its operations are attributes made at import
