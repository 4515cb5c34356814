# SPDX-License-Identifier: Apache-2.0
"""One operation about to be computed: its arguments, as torch tensors or plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]
Compute = Callable[["Call"], Result]


class Unsupported(Exception):
    """An operation, or a use of it, that the interpreter does not have. One line that names it."""


@dataclass(frozen=True, slots=True)
class Call:
    """`arguments`: name -> the values bound to it, most of them one. `dtype`: what floats are computed in."""

    kind: str
    arguments: Mapping[str, tuple[Any, ...]]
    dtype: torch.dtype

    def has(self, name: str) -> bool:
        return name in self.arguments

    def value(self, name: str) -> Any:
        """The only value of an argument. Unsupported if the operation has none of that name."""
        found = self.arguments.get(name, ())
        if len(found) != 1:
            raise Unsupported(f"{self.kind} with {len(found)} values for {name}")
        return found[0]

    def tensor(self, name: str) -> Tensor:
        found = self.value(name)
        if not isinstance(found, Tensor):
            raise Unsupported(f"{self.kind} whose {name} is no tensor")
        return found

    def tensors(self, name: str) -> list[Tensor]:
        return [v for v in self.arguments[name] if isinstance(v, Tensor)]

    def integers(self, name: str) -> list[int]:
        return [int(v) for v in self.tensor(name).reshape(-1).tolist()]

    def flags(self, name: str, count: int) -> list[bool]:
        """Booleans, all False where the argument is left out."""
        return [bool(v) for v in self.tensor(name).reshape(-1).tolist()] if self.has(name) else [False] * count

    def integer(self, name: str, default: int) -> int:
        return self.integers(name)[0] if self.has(name) else default

    def flag(self, name: str, default: bool = False) -> bool:
        return self.flags(name, 1)[0] if self.has(name) else default

    def number(self, name: str, default: float) -> float:
        return float(self.tensor(name)) if self.has(name) else default
