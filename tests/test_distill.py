# SPDX-License-Identifier: Apache-2.0
"""The chunked loss equals the one that torch.nn.functional computes, in value and gradient; the blocks' distance one by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from dlqat.recipe import BLOCKS, Recipe, Rule, portable
from dlqat.trainer import block_distance
from dlqat.trainer.block_distance import BY_WIDTH
from dlqat.trainer.data.examples import IGNORED
from dlqat.trainer.distill import Mix, head_loss
from dlqat.trainer.layers.prepare import prepare
from dlqat.trainer.layers.qat import teacher
from dlqat.trainer.options import Options
from dlqat.trainer.train import Loss, checkpoint_blocks
from models import FAMILIES, tiny


def plain(
    student: Tensor, teacher: Tensor, heads: tuple[Tensor, Tensor], labels: Tensor, mix: Mix, cap: float | None = None
) -> Tensor:
    """The definition, without chunks."""

    def capped(logits: Tensor) -> Tensor:
        return logits if cap is None else cap * torch.tanh(logits / cap)

    log_p = F.log_softmax(capped(student @ heads[0].T), -1)
    log_t = F.log_softmax(capped(teacher @ heads[1].T), -1)
    kd = F.kl_div(log_p, log_t, reduction="sum", log_target=True)
    return mix.kd * kd + mix.ce * F.nll_loss(log_p, labels, reduction="sum")


@pytest.mark.parametrize("mix", [Mix(1.0, 0.0), Mix(0.0, 1.0), Mix(0.7, 0.4)])
@pytest.mark.parametrize("tokens", [1, 8, 63, 300])
@pytest.mark.parametrize("cap", [None, 4.0])
def test_value_and_gradient_equal_the_definition(tokens: int, mix: Mix, cap: float | None) -> None:
    student = torch.randn(tokens, 32, requires_grad=True)
    teacher = torch.randn(tokens, 32)
    heads = (torch.randn(97, 32), torch.randn(97, 32))
    labels = torch.randint(0, 97, (tokens,))
    want = plain(student, teacher, heads, labels, mix, cap)
    got = head_loss(student, teacher if mix.kd else None, heads, labels, mix, cap)
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


def by_hand(model: PreTrainedModel, ids: Tensor, weights: list[float]) -> Tensor:
    """The blocks' distance from hidden states that transformers gives; the last one, behind the norm there, from a hook."""

    def states() -> list[Tensor]:
        last: list[Tensor] = []
        handle = model.get_submodule("model.norm").register_forward_pre_hook(lambda _, args: last.append(args[0]))
        found = model.model(ids, use_cache=False, output_hidden_states=True).hidden_states
        handle.remove()
        return [*found[1:-1], *last]

    own = states()
    with torch.no_grad(), teacher(model):
        wanted = states()
    each = [((x - y).square().sum(-1) / y.square().sum(-1))[:, :-1].sum() for x, y in zip(own, wanted, strict=True)]
    total = torch.zeros(())
    for part, weight in zip(each, weights, strict=True):
        total = total + weight * part / len(each)
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_distance_is_what_it_says(family: str) -> None:
    """Value and every gradient, checkpointed or not, with a weight for all and with one by each block's bits."""
    ids = torch.randint(3, 160, (2, 12))
    model = tiny(family)
    narrow = Rule(r"model\.layers\.1\..*up_proj", {"bits": 3, "mirrored": False})
    prepare(model, Recipe((*portable(4, 16, 0).rules, Rule(BLOCKS, {"rank": 4, "alpha": 4.0}), narrow)))
    learned = [p for n, p in model.named_parameters() if p.requires_grad and "lora_a" not in n]
    for given, weights in ((2.5, [2.5, 2.5]), (None, [BY_WIDTH[4], BY_WIDTH[3]])):
        want = by_hand(model, ids, weights)
        plain, whole = (Loss(model, Mix(blocks=blocks)) for blocks in (0.0, given))
        torch.testing.assert_close(whole(ids, ids) - plain(ids, ids), want, rtol=1e-3, atol=1e-3)
        alone = Loss(model, Mix(0.0, 0.0, given))(ids, ids)
        torch.testing.assert_close(alone, want, rtol=1e-5, atol=0)
    reference = torch.autograd.grad(want, learned)
    checkpoint_blocks(model)
    for a, b in zip(torch.autograd.grad(Loss(model, Mix(0.0, 0.0, None))(ids, ids), learned), reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def test_only_tokens_that_count_have_a_distance_and_a_float_model_has_none() -> None:
    model, ids = tiny("llama"), torch.randint(3, 160, (2, 12))
    labels = ids.clone()
    labels[:, 5:] = IGNORED  # causal: what comes behind changes nothing before
    assert float(Loss(model, Mix(0.0, 0.0, 50.0))(ids, ids)) == 0  # nothing is quantized: the teacher itself
    prepare(model, Recipe((*portable(3, 16, 0).rules,)))
    loss = Loss(model, Mix(0.0, 0.0, 50.0))
    torch.testing.assert_close(loss(ids, labels), loss(ids[:, :5], ids[:, :5]), rtol=1e-5, atol=0)
    assert float(loss(ids, ids)) > float(loss(ids, labels)) > 0


def test_blocks_that_stay_float_have_no_weight() -> None:
    model = tiny("llama")
    prepare(model, Recipe((Rule(r"model\.layers\.1\..*", {"bits": 4, "group_size": 16}),)))
    assert block_distance.weights(model, None) == (0.0, BY_WIDTH[4])
    assert block_distance.weights(model, 0.0) == ()


def test_the_blocks_distance_is_asked_for_or_kl_stands_alone() -> None:
    for options, answers, wanted in (
        (Options(), False, None),
        (Options(), True, 0.0),
        (Options(block_distance=7.0), True, 7.0),
        (Options(kd=0.0, ce=1.0), False, 0.0),
        (Options(kd=1.0, ce=0.0), True, None),
        (Options(block_distance=0.0), False, 0.0),
    ):
        assert options.objective(answers=answers)[2] == wanted
