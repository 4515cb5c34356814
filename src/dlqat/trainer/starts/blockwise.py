# SPDX-License-Identifier: Apache-2.0
"""A start learned block by block: which way each weight rounds, and how long each group's step is.

AutoRound (arXiv 2309.05516) on dlqat's grid: positive snapped scales, zero-points as they are. Per block

    q  = clip(round(W0 / s + v) + z),   s = snap(gamma s0),   W' = s (q - z)

with v [out, in] in [-1/2, 1/2] and gamma [out, groups] in [1/2, 3/2], from v = 0 and gamma = 1. Both move
by the sign of their gradient (SignSGD), 1 / ITERATIONS falling linearly to 0, so that a step is never too
small to change a code. The loss is the squared distance of the block's output to the float model's, given
the input that the already rounded blocks before it make: later blocks repair what earlier ones lost.

The result is `scales` and `offset` (v in 1/64 of a step) of dlqat.adapter: training starts from it, the
float weight stays as it was, and folding stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from dlqat.adapter import OFFSET_UNIT
from dlqat.trainer import precision
from dlqat.trainer.calibrate import block_inputs, block_output
from dlqat.trainer.layers.activation import straight_through
from dlqat.trainer.layers.qat import QATLinear, teacher

ITERATIONS = 40
SEQUENCES = 8
"""Per iteration."""
REACH = 0.5
"""How far v may go either way, in grid steps; gamma - 1 as well."""


@torch.no_grad()
def reconstruct(model: PreTrainedModel, tokens: Tensor, progress: Callable[[str], None] = lambda name: None) -> None:
    """Bring the QATLinears in the blocks of a prepared model to the start above.

    tokens: calibration text [sequences, length]. Two activations of [sequences, length, hidden] are held.
    """
    names = {module: name for name, module in model.named_modules()}
    blocks: nn.ModuleList = model.get_submodule("model.layers")  # pyright: ignore[reportAssignmentType]
    inputs, called = block_inputs(model, tokens)
    exact, order = inputs, torch.Generator().manual_seed(0)
    for block, arguments in zip(blocks, called, strict=True):
        progress(names[block])
        with teacher(block):
            exact = _through(block, exact, arguments)
        _block(block, inputs, exact, arguments, order)
        inputs = _through(block, inputs, arguments)


def _block(block: nn.Module, inputs: Tensor, wanted: Tensor, arguments: dict[str, Any], order: torch.Generator) -> None:
    layers = {name: m for name, m in block.named_modules() if isinstance(m, QATLinear)}
    if not layers:
        return
    rounded = {name: Rounded(layer) for name, layer in layers.items()}
    with torch.enable_grad(), _replaced(block, rounded):
        for iteration in range(ITERATIONS):
            picked = torch.randperm(len(inputs), generator=order)[:SEQUENCES].to(inputs.device)
            with _autocast(inputs):
                made = block_output(block(inputs[picked], **arguments))
            (made.float() - wanted[picked]).square().mean().backward()
            for layer in rounded.values():
                layer.step((1 - iteration / ITERATIONS) / ITERATIONS)
    for name, layer in layers.items():
        layer.scales.copy_(rounded[name].scales())
        layer.offset = rounded[name].offset()


class Rounded(nn.Module):
    """A QATLinear in the making: its base weight, and the v and gamma that are learned."""

    def __init__(self, layer: QATLinear) -> None:
        super().__init__()
        self.layer = layer
        self.v = torch.zeros_like(layer.weight, dtype=torch.float32).requires_grad_()
        self.gamma = torch.ones_like(layer.scales).requires_grad_()

    def forward(self, x: Tensor) -> Tensor:
        if self.layer.spec.activation_bits:
            x = straight_through(x)
        weight: Tensor = _Rounding.apply(self.v, self.gamma, self.layer)  # pyright: ignore[reportAssignmentType, reportUnknownMemberType]
        return F.linear(x, weight, self.layer.bias)

    def scales(self) -> Tensor:
        """snap(gamma s0)."""
        return self.layer.spec.grid.round_scales(self.gamma.detach() * self.layer.scales)

    def offset(self) -> Tensor:
        """v as int8 in OFFSET_UNIT."""
        return (self.v.detach() / OFFSET_UNIT).round_().to(torch.int8)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of SignSGD."""
        for value, middle in ((self.v, 0.0), (self.gamma, 1.0)):
            if value.grad is not None:
                value.add_(value.grad.sign_(), alpha=-rate).clamp_(middle - REACH, middle + REACH)
                value.grad = None


class _Rounding(Function):
    """W' of v and gamma, straight through round and snap.

    With G = dL/dW' and [inside] where the code is not clipped:
    dL/dv = G s [inside];  dL/dgamma = s0 sum over the group of G ((q - z) - [inside] W0 / s).
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, gamma: Tensor, layer: QATLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(v, gamma)
        base, s = _base(gamma, layer)
        return base.add_(v.view(base.shape)).clamp_(*_ends(layer)).round_().mul_(s).view(v.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        v, gamma = ctx.saved_tensors
        base, s = _base(gamma, ctx.layer)
        latent = base + v.view(base.shape)
        levels = latent.clamp(*_ends(ctx.layer))
        inside = levels == latent
        levels.round_().sub_(base.mul_(inside))
        g = grads[0].float().view(base.shape)
        by_gamma = levels.mul_(g).sum(-1).mul_(ctx.layer.scales)
        return torch.mul(g, inside, out=latent).mul_(s).view(v.shape), by_gamma, None


def _base(gamma: Tensor, layer: QATLinear) -> tuple[Tensor, Tensor]:
    """W0 / s, a fresh tensor [out, groups, inputs of a group], and s [out, groups, 1]."""
    s = layer.spec.grid.round_scales(gamma * layer.scales)[..., None]
    return layer.weight.float().view(*gamma.shape, -1) / s, s


def _ends(layer: QATLinear) -> tuple[Tensor, Tensor]:
    """The ends of q - z."""
    grid = layer.spec.grid
    zero = torch.zeros((), device=layer.scales.device)
    z = zero if layer.zero_points is None else layer.zero_points[..., None].float()
    return grid.qmin - z, grid.qmax - z


@contextmanager
def _replaced(block: nn.Module, modules: dict[str, Rounded]) -> Generator[None]:
    """Within the block of code, `modules` stand in their places."""
    parents = {name: block.get_submodule(name.rpartition(".")[0]) for name in modules}
    for name, module in modules.items():
        setattr(parents[name], name.rpartition(".")[2], module)
    try:
        yield
    finally:
        for name, module in modules.items():
            setattr(parents[name], name.rpartition(".")[2], module.layer)


def _through(block: nn.Module, inputs: Tensor, arguments: dict[str, Any]) -> Tensor:
    made = torch.empty_like(inputs)
    for i in range(0, len(inputs), SEQUENCES):
        part = slice(i, i + SEQUENCES)
        with _autocast(inputs):
            made[part] = block_output(block(inputs[part], **arguments))
    return made


def _autocast(inputs: Tensor) -> AbstractContextManager[Any]:
    return precision.autocast(inputs.device.type)
