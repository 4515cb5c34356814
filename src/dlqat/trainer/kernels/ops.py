# SPDX-License-Identifier: Apache-2.0
"""The layer's computations as torch operators, so that torch.compile, torch.export, checkpointing and FSDP see
one node with a known shape and a known backward, whatever runs inside.

    dlqat::linear            x W'^T; saves x and the tensors that W' is made of, never W'
    dlqat::linear_backward   dx and the gradients of the adapter; empty tensors where nothing is trained
    dlqat::weight            W' by itself (frozen heads, embedding rows)
    dlqat::fake_quant        int8 activations with the straight-through gradient

An Adapter crosses the border as its tensors and numbers: operators know no other values. They are opaque
(custom_op, not triton_op): inductor could fuse nothing into them but would have to trace the launches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from dlqat.adapter import Adapter
from dlqat.grid import Grid
from dlqat.trainer.kernels.choose import choose

_ADAPTER = (
    "Tensor weight, Tensor scales, Tensor? zero_points, Tensor? magnitude, Tensor? lora_a, Tensor? lora_b, "
    "Tensor? offset, float scaling, int bits, bool power_of_two, int scale_bits"
)
TENSORS = 7
"""Arguments of an adapter that are tensors, `weight` first; four numbers follow."""


def arguments(weight: Tensor, adapter: Adapter) -> tuple[Any, ...]:
    """weight and adapter as operator arguments."""
    return (
        weight, adapter.scales, adapter.zero_points, adapter.magnitude, adapter.lora_a, adapter.lora_b,
        adapter.offset, adapter.scaling, adapter.grid.bits, adapter.grid.power_of_two,
        adapter.grid.scale_bits,
    )  # fmt: skip


def _adapter(args: tuple[Any, ...]) -> tuple[Tensor, Adapter]:
    """What `arguments` took apart."""
    weight, scales, zero_points, magnitude, lora_a, lora_b, offset, scaling, bits, power_of_two, scale_bits = args
    groups = scales.shape[1]
    group_size = None if groups == 1 else weight.shape[1] // groups
    grid = Grid(bits, group_size, zero_points is None, power_of_two, scale_bits=scale_bits)
    return weight, Adapter(grid, scales, zero_points, magnitude, lora_a, lora_b, scaling, offset)


@custom_op("dlqat::weight", mutates_args=(), schema=f"({_ADAPTER}, ScalarType dtype) -> Tensor")
def weight(*args: Any) -> Tensor:
    """W' [out, in]."""
    base, adapter = _adapter(args[:-1])
    return choose(base.device).weight_forward(base, adapter, args[-1])


@weight.register_fake
def _(*args: Any) -> Tensor:
    return args[0].new_empty(args[0].shape, dtype=args[-1])


@custom_op("dlqat::linear", mutates_args=(), schema=f"(Tensor x, {_ADAPTER}, bool train_scales) -> Tensor")
def linear(x: Tensor, *args: Any) -> Tensor:
    """x W'^T in x's dtype."""
    base, adapter = _adapter(args[:-1])
    with torch.autocast(x.device.type, enabled=False):
        return x @ choose(x.device).weight_forward(base, adapter, x.dtype).T


@linear.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], args[0].shape[0]))


@custom_op(
    "dlqat::linear_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, {_ADAPTER}, bool train_scales, bool need_dx) -> Tensor[]",
)
def linear_backward(dy: Tensor, x: Tensor, *args: Any) -> list[Tensor]:
    """[dx, d magnitude, d lora_a, d lora_b, d scales]."""
    base, adapter = _adapter(args[:-2])
    train_scales, need_dx = args[-2:]
    with torch.autocast(x.device.type, enabled=False):
        dw = dy.flatten(0, -2).T @ x.flatten(0, -2)
        made, g = choose(x.device).weight_backward(base, adapter, dw, dy.dtype, train_scales)
        dx = dy @ made if need_dx else None
    return [x.new_empty(0) if t is None else t for t in (dx, g.magnitude, g.lora_a, g.lora_b, g.scales)]


@linear_backward.register_fake
def _(dy: Tensor, x: Tensor, *args: Any) -> list[Tensor]:
    scales, magnitude, lora_a, lora_b = args[1], *args[3:6]
    train_scales, need_dx = args[-2:]
    shapes = (x if need_dx else None, magnitude, lora_a, lora_b, scales if train_scales else None)
    return [x.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in shapes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[: 1 + TENSORS])
    ctx.numbers = inputs[1 + TENSORS :]


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, *tensors = ctx.saved_tensors
    need_dx = ctx.needs_input_grad[0]
    found = torch.ops.dlqat.linear_backward(dy, x, *tensors, *ctx.numbers, need_dx)
    dx, magnitude, lora_a, lora_b, scales = (t if t.numel() else None for t in found)
    return dx, None, scales, None, magnitude, lora_a, lora_b, *(None,) * 6


linear.register_autograd(_backward, setup_context=_save)


@custom_op("dlqat::fake_quant", mutates_args=(), schema="(Tensor x) -> Tensor")
def fake_quant(x: Tensor) -> Tensor:
    """x on its per-token int8 grid."""
    return choose(x.device).fake_quant(x)


@fake_quant.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


fake_quant.register_autograd(lambda ctx, grad: grad)
