# SPDX-License-Identifier: Apache-2.0
"""The layers of a model in training: a linear whose integers are trained, an embedding that is rounded.

Both keep the module's own `weight` (frozen, under its own name) and can be switched to the float layer
they came from: that is the teacher of knowledge distillation, and it costs no memory.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from dlqat.adapter import Adapter, base, fixed_point, fold
from dlqat.folded import Quantized
from dlqat.recipe import LayerSpec
from dlqat.trainer.kernels import ops
from dlqat.trainer.kernels.choose import choose
from dlqat.trainer.layers.activation import straight_through


class Switched(nn.Module):
    """A module that can be switched to the float layer that it came from."""

    quantized = True


class QATLayer(Switched):
    """What linear and embedding share: the frozen weight, the spec and the teacher switch.

    `offset` int8 or int16 [out, in]: a prepared start (dlqat.adapter).
    """

    def __init__(self, weight: nn.Parameter, spec: LayerSpec, scales: Tensor, zero_points: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.requires_grad_(False)
        self.spec = spec
        self.scales: Tensor
        if spec.train_scales:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales)
        self.zero_points: Tensor | None
        self.register_buffer("zero_points", zero_points)
        self.offset: Tensor | None
        self.register_buffer("offset", None)

    def adapter(self) -> Adapter:
        """The layer's trained state, as the value that folds."""
        return Adapter(self.spec.grid, self.scales, self.zero_points, offset=self.offset)

    def fold(self) -> Quantized:
        """The layer's integers."""
        return fold(self.weight.detach(), self.adapter())


class QATEmbedding(QATLayer):
    """An nn.Embedding whose rows lie on the grid; nothing in it is trained. `factor`: what its rows are multiplied by."""

    def __init__(
        self, weight: nn.Parameter, spec: LayerSpec, scales: Tensor, zero_points: Tensor | None, factor: float = 1.0
    ) -> None:
        super().__init__(weight, spec, scales, zero_points)
        self.factor = factor

    def forward(self, ids: Tensor) -> Tensor:
        rows = self._rows(ids)
        return rows if self.factor == 1 else rows * self.factor

    def _rows(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight)
        if not self.quantized:
            return rows

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else F.embedding(ids, tensor).flatten(0, -2)

        scales = F.embedding(ids, self.scales).flatten(0, -2)
        adapter = Adapter(self.spec.grid, scales, of(self.zero_points), offset=of(self.offset))
        return ops.weight(*ops.arguments(rows.flatten(0, -2), adapter), rows.dtype).view(rows.shape)


class QATLinear(QATLayer):
    """y = act(x) W'^T + b with W' = snap(m s) (q - z): LoRA inside the rounding, one m per group.

    `mask` bool [out, in]: False where the weight is pruned. The weight W' is made anew in forward and in backward; autograd
    keeps x, W0 and the small tensors only.
    """

    def __init__(
        self,
        linear: nn.Linear,
        spec: LayerSpec,
        scales: Tensor,
        zero_points: Tensor | None = None,
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(cast("nn.Parameter", linear.weight), spec, scales, zero_points)
        bias = cast("nn.Parameter | None", linear.bias)
        self.bias = None if bias is None else bias.requires_grad_(False)
        self.offset = offset
        self.mask: Tensor | None
        self.register_buffer("mask", mask)
        out, inputs = linear.weight.shape
        self.held: Tensor | None = None
        """W' as it is, within `made_once`."""
        self.magnitude = nn.Parameter(torch.ones_like(scales)) if spec.magnitude else None
        self.lora_a = self.lora_b = None
        if spec.rank:
            # LoRA's start: A random, B zero, so that training begins at the rounded base.
            bound = 1.0 / math.sqrt(inputs)
            a = torch.empty(spec.rank, inputs).uniform_(-bound, bound)  # on the CPU: the same on every device
            self.lora_a = nn.Parameter(a.to(scales.device))
            self.lora_b = nn.Parameter(torch.zeros(out, spec.rank, device=scales.device))

    def adapter(self) -> Adapter:
        return Adapter(
            self.spec.grid,
            self.scales,
            self.zero_points,
            self.magnitude,
            self.lora_a,
            self.lora_b,
            self.spec.scaling,
            self.offset,
            self.mask,
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantized:
            fixed = self.weight.dtype == torch.int8
            return F.linear(x, base(self.weight, self.adapter()) if fixed else self.weight, self.bias)
        if self.spec.activation_bits:
            x = straight_through(x)
        if self.held is not None:
            return F.linear(x, self.held, self.bias)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        if torch.compiler.is_compiling():
            y = ops.linear(x, *ops.arguments(self.weight, self.adapter()), self.spec.train_scales)
        else:
            trained = (self.lora_a, self.lora_b, self.magnitude, self.scales)
            y = cast("Tensor", _Product.apply(x, self.weight, self, *trained))  # pyright: ignore[reportUnknownMemberType]
        return y if self.bias is None else y + self.bias

    def shrink_base(self) -> None:
        """Keep the frozen weight as the spec asks, on the scales as they are now (trained ones cannot be asked for)."""
        if self.spec.base_bits and self.weight.is_floating_point():
            fixed = fixed_point(self.weight.detach(), self.scales, self.spec.grid)
            self.weight = nn.Parameter(fixed, requires_grad=False)

    def made(self, dtype: torch.dtype) -> Tensor:
        """W' [out, in] in `dtype`: in float32, dense(fold()) bit for bit."""
        return _masked(ops.weight(*ops.arguments(self.weight, self.adapter()), dtype), self.mask)


def _masked(made: Tensor, mask: Tensor | None) -> Tensor:
    return made if mask is None else made.mul_(mask)


class _Product(Function):
    """x W'^T: ops.linear without the operator's own cost, 0.2 ms a call: on a GPU as much as the products of a
    small layer. The trained tensors are arguments so that autograd asks for their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: QATLinear, *trained: Tensor | None) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.autocast(x.device.type, enabled=False):
            return x @ _masked(choose(x.device).weight_forward(weight, layer.adapter(), x.dtype), layer.mask).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A tensor or None for each argument of forward."""
        layer: QATLinear = ctx.layer
        (x,) = ctx.saved_tensors
        dy, adapter = grads[0], layer.adapter()
        with torch.autocast(dy.device.type, enabled=False):
            dw = _masked(dy.flatten(0, -2).T @ x.flatten(0, -2), layer.mask)
            made, g = choose(dy.device).weight_backward(layer.weight, adapter, dw, dy.dtype, layer.spec.train_scales)
            made = _masked(made, layer.mask)
            dx = dy @ made if ctx.needs_input_grad[0] else None
        return dx, None, None, g.lora_a, g.lora_b, g.magnitude, g.scales


@contextmanager
def made_once(model: nn.Module) -> Generator[None]:
    """Within the block every linear keeps its W', in the compute dtype: for many forward passes of the same weights."""
    layers = [m for m in model.modules() if isinstance(m, QATLinear) and m.quantized]
    for layer in layers:
        device, own = layer.scales.device.type, layer.weight.dtype
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own
        layer.held = layer.made(cast if cast.is_floating_point else torch.float32)
    try:
        yield
    finally:
        for layer in layers:
            layer.held = None


@contextmanager
def teacher(model: nn.Module) -> Generator[None]:
    """Within the block `model` is the float model it came from."""
    layers = [m for m in model.modules() if isinstance(m, Switched)]
    for layer in layers:
        layer.quantized = False
    try:
        yield
    finally:
        for layer in layers:
            layer.quantized = True
