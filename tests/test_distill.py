# SPDX-License-Identifier: Apache-2.0
"""The chunked loss equals the one that torch.nn.functional computes, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlqat.trainer.distill import Mix, head_loss


def plain(student: Tensor, teacher: Tensor, heads: tuple[Tensor, Tensor], labels: Tensor, mix: Mix) -> Tensor:
    """The definition, without chunks."""
    log_p = F.log_softmax(student @ heads[0].T, -1)
    log_t = F.log_softmax(teacher @ heads[1].T, -1)
    kd = F.kl_div(log_p, log_t, reduction="sum", log_target=True)
    return mix.kd * kd + mix.ce * F.nll_loss(log_p, labels, reduction="sum")


@pytest.mark.parametrize("mix", [Mix(1.0, 0.0), Mix(0.0, 1.0), Mix(0.7, 0.4)])
@pytest.mark.parametrize("tokens", [1, 8, 63, 300])
def test_value_and_gradient_equal_the_definition(tokens: int, mix: Mix) -> None:
    student = torch.randn(tokens, 32, requires_grad=True)
    teacher = torch.randn(tokens, 32)
    heads = (torch.randn(97, 32), torch.randn(97, 32))
    labels = torch.randint(0, 97, (tokens,))
    want = plain(student, teacher, heads, labels, mix)
    got = head_loss(student, teacher if mix.kd else None, heads, labels, mix)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    (a,) = torch.autograd.grad(got * 0.5, [student])
    (b,) = torch.autograd.grad(want * 0.5, [student])
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient() -> None:
    hidden = torch.randn(70, 16, requires_grad=True)
    head = torch.randn(50, 16)
    loss = head_loss(hidden, hidden.detach(), (head, head), torch.zeros(70, dtype=torch.long), Mix())
    (grad,) = torch.autograd.grad(loss, [hidden])
    assert float(loss) == 0.0 and float(grad.abs().max()) < 1e-6
