# SPDX-License-Identifier: Apache-2.0
"""The loss: KL divergence to the float teacher, cross entropy on the labels, or a mix of the two.

Logits of a whole batch [tokens, vocabulary] are the largest tensors of a training step by far. Here a
few tokens at a time go through both heads, and loss and dL/dhidden leave the loop: memory is that of
one chunk, and the passes over the logits stay in cache.

    loss = (kd * KL(teacher || student) + ce * CE(labels)) summed over tokens / count

d(KL)/dlogits = softmax(student) - softmax(teacher); d(CE)/dlogits = softmax(student) - onehot(label).
The head is frozen, so dL/dhidden = dL/dlogits @ W is all that the backward needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

CHUNK = 64
"""Tokens per pass through the heads: logits of one chunk (64 x 49152 float32 = 12 MB) fit a cache."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Weights of the two losses; kd needs the teacher's hidden states."""

    kd: float = 1.0
    ce: float = 0.0


class _HeadLoss(Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor | None, weights: tuple[Tensor, Tensor], labels: Tensor, mix: Mix
    ) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            total = torch.zeros((), dtype=torch.float32, device=student.device)
            grad = torch.empty_like(student)
            for i in range(0, student.shape[0], CHUNK):
                rows = slice(i, i + CHUNK)
                t = None if teacher is None else teacher[rows]
                loss, grad[rows] = _chunk(student[rows], t, weights, labels[rows], mix)
                total += loss
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None, None


def _chunk(
    student: Tensor, teacher: Tensor | None, weights: tuple[Tensor, Tensor], labels: Tensor, mix: Mix
) -> tuple[Tensor, Tensor]:
    """Summed loss and dL/dstudent of a few tokens; every label is valid here."""
    own, float_head = weights
    log_p = torch.log_softmax((student.to(own.dtype) @ own.T).float(), -1)
    loss = torch.zeros((), device=student.device)
    if mix.ce:
        loss = loss - mix.ce * log_p.gather(-1, labels[:, None]).sum()
    grad = log_p.exp()
    if mix.kd and teacher is not None:
        log_t = torch.log_softmax((teacher.to(float_head.dtype) @ float_head.T).float(), -1)
        target = log_t.exp()
        loss = loss + mix.kd * torch.dot(target.flatten(), log_t.sub_(log_p).flatten())
        grad.mul_(mix.kd + mix.ce).sub_(target, alpha=mix.kd)
    else:
        grad.mul_(mix.ce)
    if mix.ce:
        grad.scatter_add_(-1, labels[:, None], torch.full_like(labels[:, None], -mix.ce, dtype=grad.dtype))
    return loss, (grad.to(own.dtype) @ own).to(student.dtype)


def head_loss(
    student: Tensor, teacher: Tensor | None, heads: tuple[Tensor, Tensor], labels: Tensor, mix: Mix
) -> Tensor:
    """Summed loss over tokens, float32 scalar, differentiable in `student`.

    student, teacher: hidden states [tokens, hidden] that predict `labels` [tokens] (no ignored ones).
    heads: the student's and the teacher's head weights [vocabulary, hidden] in the compute dtype.
    """
    loss: Tensor = _HeadLoss.apply(student, teacher, heads, labels, mix)  # pyright: ignore[reportAssignmentType, reportUnknownMemberType]
    return loss
