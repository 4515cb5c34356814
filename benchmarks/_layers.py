# SPDX-License-Identifier: Apache-2.0
"""The layers that benchmarks/kernels.py compares: each a function x -> y whose backward trains what it trains."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlqat.recipe import LayerSpec
from dlqat.trainer.layers.qat import QATLinear
from dlqat.trainer.rounding.search import search

Layer = Callable[[Tensor], Tensor]
RANK, GROUP = 16, 32


def linear(out: int, inputs: int, device: str) -> nn.Linear:
    return nn.Linear(inputs, out, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(False)


def dlqat(out: int, inputs: int, device: str) -> QATLinear:
    base, spec = linear(out, inputs, device), LayerSpec(4, GROUP, rank=RANK)
    return QATLinear(base, spec, *search(base.weight.detach(), spec.grid)).to(device)


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def textbook(out: int, inputs: int, device: str) -> Layer:
    """The formulas as autograd and inductor see them: what torch.compile makes of the reference's mathematics."""
    m = dlqat(out, inputs, device)
    groups = m.scales.shape[1]

    def forward(x: Tensor) -> Tensor:
        assert m.lora_a is not None
        assert m.lora_b is not None
        assert m.magnitude is not None
        v = (m.weight.float() + m.spec.scaling * (m.lora_b @ m.lora_a)).view(out, groups, -1)
        s = m.scales[..., None]
        q = Round.apply(torch.clamp(v / s, m.spec.grid.qmin, m.spec.grid.qmax))
        gain = m.magnitude[..., None] * s
        snapped = gain + (gain.bfloat16().float() - gain).detach()
        return F.linear(x, (snapped * q).view(out, -1).to(x.dtype))  # pyright: ignore[reportOperatorIssue]

    return torch.compile(forward, backend="inductor" if device == "cuda" else "eager")


def peft_lora(out: int, inputs: int, device: str) -> Layer:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        nn.Sequential(linear(out, inputs, device)),  # pyright: ignore[reportArgumentType]
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"]),
    )
    return model.to(torch.bfloat16)


class QATLoRA(nn.Module):
    """As torchtune's QATLoRALinear: torchao's fake-quantized frozen weight beside LoRA on the activations."""

    def __init__(self, out: int, inputs: int, device: str) -> None:
        from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig

        super().__init__()
        config = IntxFakeQuantizeConfig(torch.int4, group_size=GROUP)
        self.base = FakeQuantizedLinear.from_linear(linear(out, inputs, device), weight_config=config)
        self.base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(RANK, inputs, device=device, dtype=torch.bfloat16) / inputs**0.5)
        self.b = nn.Parameter(torch.zeros(out, RANK, device=device, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.a), self.b)


class OneLinear(nn.Module):
    def __init__(self, out: int, inputs: int, device: str) -> None:
        super().__init__()
        self.linear = linear(out, inputs, device)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def nncf_fq_lora(out: int, inputs: int, device: str) -> Layer:
    return fq_lora(OneLinear(out, inputs, device), torch.randn(4, inputs, device=device, dtype=torch.bfloat16))


def fq_lora(model: nn.Module, example: object) -> nn.Module:
    """NNCF's FQ_LORA on every linear of `model`: LoRA inside the rounding, trained scales. It sends no telemetry here."""
    # It compiles its kernels once, for a minute. A compilation that was killed leaves ~/.cache/torch_extensions/*/nncf/*/lock
    # behind, and all later ones wait for that: not for ever.
    os.environ |= {"NNCF_CI": "1", "NNCF_EXTENSION_LOAD_TIMEOUT": "600"}
    import nncf
    from nncf.parameters import CompressionFormat

    nncf.set_log_level(logging.ERROR)
    return nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=GROUP,
        ratio=1.0,
        dataset=nncf.Dataset([example]),
        compression_format=CompressionFormat.FQ_LORA,
        advanced_parameters=nncf.AdvancedCompressionParameters(lora_adapter_rank=RANK),
        all_layers=isinstance(model, OneLinear),  # else its first and last layers stay in 8 bits
    )


def layers() -> dict[str, Callable[[int, int, str], Layer]]:
    """Name -> maker. The reference differs from dlqat in a switch that the benchmark sets."""
    found: dict[str, Callable[[int, int, str], Layer]] = {
        "dlqat": dlqat, "dlqat reference": dlqat, "textbook, torch.compile": textbook
    }  # fmt: skip
    if find_spec("peft"):
        found["peft LoRA bf16"] = peft_lora
    if find_spec("torchao"):
        found["torchao QAT + LoRA"] = QATLoRA
    if find_spec("nncf"):
        found["NNCF FQ_LORA"] = nncf_fq_lora
    return found
