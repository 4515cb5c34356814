# SPDX-License-Identifier: Apache-2.0
"""Which kernels run where: Triton on a GPU (CUDA and ROCm), the reference everywhere else
(and on a GPU whose torch came without Triton).

DLQAT_KERNELS=triton or =reference forces one of them, to compare or to step around a broken driver.
"""

from __future__ import annotations

import os
from typing import Protocol, cast

import torch
from torch import Tensor

from dlqat.adapter import Adapter
from dlqat.refusal import Refusal
from dlqat.trainer.kernels import reference
from dlqat.trainer.kernels.reference import Gradients

SWITCH = "DLQAT_KERNELS"
KNOWN = ("triton", "reference")


class Kernels(Protocol):
    """What dlqat.trainer.kernels.reference defines."""

    def weight_forward(self, weight: Tensor, adapter: Adapter, dtype: torch.dtype) -> Tensor: ...

    def weight_backward(
        self, weight: Tensor, adapter: Adapter, grad: Tensor, dtype: torch.dtype, train_scales: bool = False
    ) -> tuple[Tensor, Gradients]: ...

    def fake_quant(self, x: Tensor) -> Tensor: ...


def choose(device: torch.device) -> Kernels:
    """The kernels for tensors on `device`; Refusal if the forced ones cannot run there."""
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", *KNOWN):
        raise Refusal(f"{SWITCH}={wanted} is not one of {', '.join(KNOWN)}")
    if wanted == "reference" or (not wanted and device.type != "cuda"):
        return cast("Kernels", reference)
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise Refusal(f"{SWITCH}=triton needs a GPU, or TRITON_INTERPRET=1 (very slow); the model is on {device.type}")
    try:
        from dlqat.trainer.kernels import triton
    except ModuleNotFoundError as error:
        if wanted:
            raise Refusal(f"{SWITCH}=triton needs {error.name}: pip install triton") from error
        return cast("Kernels", reference)
    return cast("Kernels", triton)
