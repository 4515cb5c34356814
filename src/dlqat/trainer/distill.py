# SPDX-License-Identifier: Apache-2.0
"""The loss: KL divergence to the float teacher, cross entropy on the labels, or a mix of the two.

Logits of a whole batch [tokens, vocabulary] are the largest tensors of a training step by far. Here a
chunk of tokens at a time goes through both heads, and loss and dL/dhidden leave the loop: memory is that of
one chunk. Softmax and what follows it go through few rows at a time, in buffers that are made once: they stay
in cache, and no page of fresh memory is touched (on a CPU that cost more than the arithmetic).

    loss = (kd * KL(teacher || student) + ce * CE(labels)) summed over tokens / count

d(KL)/dlogits = softmax(student) - softmax(teacher); d(CE)/dlogits = softmax(student) - onehot(label).
The head is frozen, so dL/dhidden = dL/dlogits @ W is all that the backward needs. Some models cap their logits (Gemma 2):
c tanh(z / c) of what the head gives, whose slope is 1 - tanh^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

CHUNK = 256
"""Tokens per pass through the heads: enough for matrix products at full speed (measured from 64 up)."""
STRIP = 8
"""Rows of logits at a time on a CPU: three buffers of 8 x 49152 float32 are 4.7 MB. (A GPU takes the chunk.)"""


@dataclass(frozen=True, slots=True)
class Mix:
    """Weights of the losses; kd and blocks need the teacher."""

    kd: float = 1.0
    ce: float = 0.0
    blocks: float | None = 0.0
    """Of the distance of the blocks' outputs (block_distance.py); None: of each block by the width of its grids."""


class _HeadLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        weights: tuple[Tensor, Tensor],
        labels: Tensor,
        mix: Mix,
        cap: float | None,
    ) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            total = torch.zeros((), dtype=torch.float32, device=student.device)
            grad = torch.empty_like(student)
            space = _Space.of(student, weights, teacher is not None, cap)
            for i in range(0, student.shape[0], CHUNK):
                rows = slice(i, i + CHUNK)
                t = None if teacher is None else teacher[rows]
                loss, grad[rows] = _chunk(student[rows], t, weights, labels[rows], mix, space)
                total += loss
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None, None, None


@dataclass(frozen=True, eq=False, slots=True)
class _Space:
    """Buffers of one call: logits of a chunk in the heads' dtype, strips of them in float32; and the logits' cap."""

    own: Tensor
    teacher: Tensor | None
    log_p: Tensor
    log_t: Tensor
    p: Tensor
    slope: Tensor
    cap: float | None

    @staticmethod
    def of(student: Tensor, weights: tuple[Tensor, Tensor], teacher: bool, cap: float | None) -> _Space:
        tokens, vocabulary = min(CHUNK, student.shape[0]), weights[0].shape[0]
        logits = [w.new_empty(tokens, vocabulary) for w in weights[: 1 + teacher]]
        rows = STRIP if student.device.type == "cpu" else tokens
        strips = torch.empty(3 + (cap is not None), rows, vocabulary, dtype=torch.float32, device=student.device)
        return _Space(logits[0], logits[1] if teacher else None, strips[0], strips[1], strips[2], strips[-1], cap)

    def capped(self, logits: Tensor, slope: Tensor | None = None) -> Tensor:
        """The model's logits in place of the head's; `slope` becomes how they follow those."""
        if self.cap is None:
            return logits
        logits.div_(self.cap).tanh_()
        if slope is not None:
            torch.addcmul(logits.new_ones(()), logits, logits, value=-1, out=slope)
        return logits.mul_(self.cap)


def _chunk(
    student: Tensor,
    teacher: Tensor | None,
    weights: tuple[Tensor, Tensor],
    labels: Tensor,
    mix: Mix,
    space: _Space,
) -> tuple[Tensor, Tensor]:
    """Summed loss and dL/dstudent of a chunk of tokens; every label is valid here."""
    (own, float_head), count = weights, student.shape[0]
    logits = torch.mm(student.to(own.dtype), own.T, out=space.own[:count])
    target = None
    if mix.kd and teacher is not None and space.teacher is not None:
        target = torch.mm(teacher.to(float_head.dtype), float_head.T, out=space.teacher[:count])
    loss = torch.zeros((), device=student.device)
    for i in range(0, count, len(space.p)):
        rows = slice(i, i + len(space.p))
        loss += _strip(logits[rows], None if target is None else target[rows], labels[rows, None], mix, space)
    return loss, (logits @ own).to(student.dtype)


def _strip(logits: Tensor, target: Tensor | None, labels: Tensor, mix: Mix, space: _Space) -> Tensor:
    """Summed loss of a few rows; `logits` becomes dL/dlogits."""
    count = len(logits)
    log_p, p, slope = space.log_p[:count], space.p[:count], space.slope[:count]
    torch.log_softmax(space.capped(log_p.copy_(logits), slope), -1, out=log_p)
    loss = torch.zeros((), device=logits.device)
    if mix.ce:
        loss = loss - mix.ce * log_p.gather(-1, labels).sum()
    torch.exp(log_p, out=p)
    if target is not None:
        log_t = space.log_t[:count]
        torch.log_softmax(space.capped(log_t.copy_(target)), -1, out=log_t)
        log_p.sub_(log_t)  # log p - log t
        t = log_t.exp_()
        loss = loss - mix.kd * torch.dot(t.flatten(), log_p.flatten())
        p.mul_(mix.kd + mix.ce).sub_(t, alpha=mix.kd)
    else:
        p.mul_(mix.ce)
    if mix.ce:
        p.scatter_add_(-1, labels, torch.full_like(labels, -mix.ce, dtype=p.dtype))
    logits.copy_(p if space.cap is None else p.mul_(slope))
    return loss


def head_loss(
    student: Tensor,
    teacher: Tensor | None,
    heads: tuple[Tensor, Tensor],
    labels: Tensor,
    mix: Mix,
    cap: float | None = None,
) -> Tensor:
    """Summed loss over tokens, float32 scalar, differentiable in `student`.

    student, teacher: hidden states [tokens, hidden] that predict `labels` [tokens] (no ignored ones).
    heads: the student's and the teacher's head weights [vocabulary, hidden] in the compute dtype. cap: of the logits.
    """
    loss: Tensor = _HeadLoss.apply(student, teacher, heads, labels, mix, cap)  # pyright: ignore[reportAssignmentType, reportUnknownMemberType]
    return loss
