# SPDX-License-Identifier: Apache-2.0
"""Whether a device computes in bf16, or only says so.

A processor without bf16 instructions (x86 with AVX2 alone: most laptops) emulates its products: measured on an EPYC of that
kind, a layer's forward took 8 times as long as in float32 and its weight gradient 80 times, so that training in bf16 there
does not end. `--precision auto`, the default, takes float32 on such a machine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def fast_bf16(device: str) -> bool:
    """Whether products in bf16 are at least as fast as in float32 on a device of this type."""
    if device == "cpu":
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: SLF001  # torch has no public name for it
        return bool(supported())
    return device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def device() -> str:
    """The type of device that trains here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen(wanted: str, device: str) -> str:
    """bf16 or fp32 of auto, bf16 or fp32."""
    return wanted if wanted != "auto" else "bf16" if fast_bf16(device) else "fp32"


def autocast(device: str) -> AbstractContextManager[Any]:
    """bf16 where it is fast; for what is measured or learned beside the training loop."""
    there = torch.amp.is_autocast_available(device) and fast_bf16(device)
    return torch.autocast(device, torch.bfloat16) if there else nullcontext()
