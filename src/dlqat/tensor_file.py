# SPDX-License-Identifier: Apache-2.0
"""The one reader of safetensors: tensors of a plain file that is whole, or a refusal that names it."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlqat import plain_file
from dlqat.refusal import Refusal


@contextmanager
def opened(path: Path, advice: str = "") -> Generator[Any]:
    """The file (safetensors' safe_open). Refusal if it is missing, damaged or truncated; `advice`: what to do then."""
    if (reason := plain_file.fault(path)) is not None:
        raise Refusal(f"{path} {reason}{advice}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, UnicodeDecodeError, OverflowError) as error:
        raise Refusal(f"{path} is damaged or truncated ({error}){advice}") from error


def names(path: Path, advice: str = "") -> list[str]:
    """Names of the tensors."""
    with opened(path, advice) as file:
        return list(file.keys())


def tensor(path: Path, name: str, advice: str = "") -> Tensor:
    """One tensor."""
    with opened(path, advice) as file:
        return file.get_tensor(name)


def every(path: Path, advice: str = "") -> dict[str, Tensor]:
    """All tensors by name."""
    with opened(path, advice) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def finite(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinity. In one pass and without torch.isfinite's tensors of the same size: a NaN is
    the least and the largest of all, and so is an infinity one of the two."""
    return not tensor.numel() or all(math.isfinite(float(x)) for x in torch.aminmax(tensor.detach()))
