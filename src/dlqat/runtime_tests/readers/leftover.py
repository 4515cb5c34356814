# SPDX-License-Identifier: Apache-2.0
"""Bytes of a file that belong to nothing: what no tensor has is padding, and padding is zeros, less than a page of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

PAGE = 1 << 16
"""The widest alignment in use (of external data that are mapped on Windows)."""


def leftover(name: str, content: NDArray[np.uint8], spans: Iterable[tuple[int, int]]) -> Iterator[str]:
    """What lies between and behind the spans (offset, length) of a file, if it is not padding."""
    at = 0
    for start, length in (*sorted(spans), (len(content), 0)):
        gap = content[at:start]
        if len(gap) >= PAGE or bool(gap.any()):
            what = "that nothing uses" if bool(gap.any()) else "of padding"
            yield f"{name}: {len(gap)} bytes {what}, from byte {at} on"
        at = max(at, start + length)
