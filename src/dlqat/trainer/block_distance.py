# SPDX-License-Identifier: Apache-2.0
"""The second part of the loss: how far every block's output lies from the float model's.

    sum over blocks l and tokens t of   w_l / blocks * |x_lt - y_lt|^2 / |y_lt|^2

x: what block l of the student gives, y: the teacher's. KL at the head alone lets the blocks drift apart in ways that
cancel on the training text and nowhere else; the same 40 steps at 3 bits came to KL 0.227 with it, and to 0.275 without it in
a prototype (docs/training.md). w goes by the width of a block's grids.

The teacher's outputs are at hand, since KL needs its forward pass; they are the memory this costs, one [tokens, hidden] a
block. The student's are kept by autograd anyway (a block's output is the next one's input, also under gradient
checkpointing), so `distance` is computed one block at a time, and nothing more is saved for its backward.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from dlqat.trainer.layers.qat import QATLinear

BY_WIDTH = {2: 50.0, 3: 150.0, 4: 150.0, 5: 150.0, 8: 150.0}
"""w of a block by the fewest bits of its linears: of 30 or 50, 150 and 600 the best on text that no row trains on
(docs/training.md, the switches); that of 8 bits was not measured, and at 2 bits no other than 50."""


def weights(model: PreTrainedModel, given: float | None) -> tuple[float, ...]:
    """w of every block; () if none counts. given: one for all, or None: by width; a block that is not quantized has 0."""
    blocks = model.get_submodule("model.layers").children()
    widths = [min((m.spec.bits for m in b.modules() if isinstance(m, QATLinear)), default=0) for b in blocks]
    found = tuple(BY_WIDTH.get(bits, 0.0) if given is None else given for bits in widths)
    return found if any(found) else ()


@contextmanager
def outputs(model: PreTrainedModel) -> Generator[list[Tensor]]:
    """What the blocks give in the forward pass within the block of code, [batch, length, hidden] each: read where it
    enters the next block or the last norm. The hooks are gone when backward computes a checkpointed block again."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    readers = [*model.get_submodule("model.layers").children(), model.get_submodule("model.norm")][1:]
    with ExitStack() as hooks:
        for module in readers:
            hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield found


def distance(student: Sequence[Tensor], teacher: Sequence[Tensor], wanted: Tensor, weights: Sequence[float]) -> Tensor:
    """The sum above, float32 scalar, differentiable in `student`. wanted: bool [batch, length - 1], the tokens that count."""
    counts = nn.functional.pad(wanted, (0, 1)).float()  # the last token predicts nothing
    total = counts.new_zeros(())
    for x, y, weight in zip(student, teacher, weights, strict=True):
        total = total + _Distance.apply(x, y, counts * (weight / len(weights)))  # pyright: ignore[reportUnknownMemberType]
    return total


class _Distance(Function):
    """sum_t c_t |x_t - y_t|^2 / |y_t|^2; its gradient in x: 2 c_t (x_t - y_t) / |y_t|^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        each = counts / y.float().square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        ctx.save_for_backward(x, y, each)
        return (x.float() - y.float()).square_().sum(-1).mul_(each).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, each = ctx.saved_tensors
        return (x.float() - y.float()).mul_((2 * grads[0] * each)[..., None]).to(x.dtype), None, None
