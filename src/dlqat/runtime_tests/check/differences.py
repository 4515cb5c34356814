# SPDX-License-Identifier: Apache-2.0
"""What L0 finds: tensors that are not equal, bit for bit, said so that a user sees where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Difference:
    """`wrong` of `total` numbers of a tensor; total 0 where there is nothing to count (missing, surplus)."""

    name: str
    what: str
    wrong: int
    total: int
    detail: str

    def __str__(self) -> str:
        count = f"{self.wrong} of {self.total} {self.what} differ" if self.total else self.what
        return f"{self.name}: {count}{f' ({self.detail})' if self.detail else ''}"


def unequal(name: str, what: str, found: NDArray[np.generic], wanted: NDArray[np.generic]) -> Iterator[Difference]:
    """Differences as bits: -0.0 is not 0.0, and a NaN equals itself."""
    if found.dtype == np.float32:
        found_bits, wanted_bits = (np.ascontiguousarray(x).view(np.uint32) for x in (found, wanted))
    else:
        found_bits, wanted_bits = found, wanted
    wrong = found_bits != wanted_bits
    if bool(wrong.any()):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        detail = f"first at {list(at)}: {found[at]}, folded/ has {wanted[at]}"
        yield Difference(name, what, int(wrong.sum()), wrong.size, detail)


def named(
    found: Mapping[str, NDArray[np.generic]], wanted: Mapping[str, NDArray[np.generic]], what: str
) -> Iterator[Difference]:
    for name, values in wanted.items():
        if name not in found:
            yield Difference(name, "missing: not stored, or nothing uses it", 0, 0, "")
        elif found[name].shape != values.shape:
            yield Difference(name, f"has shape {found[name].shape}, folded/ has {values.shape}", 0, 0, "")
        else:
            yield from unequal(name, what, found[name], values)
