# SPDX-License-Identifier: Apache-2.0
"""The block-wise start: nearer to the float model than rounding, exact to fold, exact for the teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dlqat.folded import dense
from dlqat.recipe import BLOCKS, LayerSpec, Recipe, Rule, portable
from dlqat.trainer.layers.prepare import qat_layers
from dlqat.trainer.layers.qat import QATLinear, teacher
from dlqat.trainer.starts import blockwise, by_name
from dlqat.trainer.starts.start import Site
from models import tiny

TOKENS = torch.randint(3, 160, (136, 32), generator=torch.Generator().manual_seed(1))
CALIBRATION, UNSEEN = TOKENS[:128], TOKENS[128:]


def prepared(family: str = "llama-tied", init: str = "mse", **changes: object) -> PreTrainedModel:
    model = tiny(family)
    rule = Rule(BLOCKS, {"rank": 4, "alpha": 4.0, **changes})
    recipe = Recipe((*portable(3, 16, 0).rules, rule))
    by_name.parse(init).prepare(Site(model, recipe, text=lambda: CALIBRATION))
    return model


@torch.no_grad()
def loss(model: PreTrainedModel, tokens: Tensor = UNSEEN) -> float:
    with teacher(model):
        wanted = model(tokens).logits
    return float((model(tokens).logits - wanted).square().mean())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama-tied", {}),
        ("llama-biased", {"activation_bits": 8}),
        ("mistral", {"symmetric": False}),
        ("qwen3", {"bits": 4, "group_size": 0}),
    ],
    ids=["sym", "int8-activations", "asym-window", "per-channel"],
)
def test_it_loses_less_than_rounding_to_nearest(family: str, changes: dict[str, object]) -> None:
    model = prepared(family, **changes)
    seen, unseen = loss(model, CALIBRATION), loss(model, UNSEEN)
    model = prepared(family, "blocks", **changes)
    assert loss(model, CALIBRATION) < 0.7 * seen
    assert loss(model, UNSEEN) < 0.9 * unseen


def test_the_teacher_stays_exact_and_no_module_is_left_behind() -> None:
    model = prepared()
    with torch.no_grad(), teacher(model):
        before = model(UNSEEN).logits
    kinds = [type(m) for m in model.modules()]
    model = prepared(init="blocks")
    assert [type(m) for m in model.modules()] == kinds
    with torch.no_grad(), teacher(model):
        assert torch.equal(model(UNSEEN).logits, before)


def test_what_was_learned_is_what_folds() -> None:
    torch.manual_seed(0)
    turned = torch.randint(-1, 1, (48, 4), dtype=torch.int8)
    spec = LayerSpec(3, 16, rank=0, magnitude=False)
    layer = QATLinear(torch.nn.Linear(64, 48, bias=False), spec, torch.rand(48, 4) / 9, turned)
    rounded = blockwise.Rounded(layer)
    with torch.no_grad():
        # Whole units of `offset`, so that storing them rounds nothing.
        rounded.v.copy_(torch.randint(-32, 33, rounded.v.shape) * blockwise.OFFSET_UNIT)
        rounded.gamma.copy_(0.5 + torch.rand(48, 4))
        learned = rounded(torch.eye(64)).T
        layer.scales.copy_(rounded.scales())
        layer.offset = rounded.offset()
    made = dense(layer.fold())
    # V / s + v is computed in another order here and there; a tie may fall to the other side.
    assert float((made == learned).float().mean()) > 0.999
    assert torch.equal(layer.made(torch.float32), made)


def test_gradients_are_those_of_the_smooth_part() -> None:
    """Between two ties of round, W' = s0 gamma q is linear in gamma, and moving v by a step moves W' by s."""
    torch.manual_seed(0)
    layer = QATLinear(torch.nn.Linear(16, 4, bias=False), LayerSpec(3, 16, mirrored=False), torch.rand(4, 1) / 5)
    rounded = blockwise.Rounded(layer)
    weight = torch.randn(4, 16)
    made = rounded(torch.eye(16)).T
    (made * weight).sum().backward()
    s, gamma = rounded.scales(), rounded.gamma
    v = layer.weight / s
    inside = (v >= -4) & (v <= 3)
    levels = v.clamp(-4, 3).round()
    assert rounded.v.grad is not None and gamma.grad is not None
    assert torch.allclose(rounded.v.grad, weight * s * inside)
    expected = (weight * (levels - v * inside)).sum(-1, keepdim=True) * layer.scales
    assert torch.allclose(gamma.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_same_start_every_time() -> None:
    first, second = prepared(init="blocks"), prepared(init="blocks")
    ours, theirs = qat_layers(first), qat_layers(second)
    for name, layer in ours.items():
        assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), theirs[name].buffers(), strict=True)), name
