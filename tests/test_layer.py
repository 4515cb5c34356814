# SPDX-License-Identifier: Apache-2.0
"""Laws of the DL-QAT layer: folding gives the training forward, gradients are those of the formulas."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlqat.folded import check, dense
from dlqat.grid import Grid
from dlqat.recipe import LayerSpec
from dlqat.trainer.kernels import reference
from dlqat.trainer.layers.activation import fake_quant, straight_through
from dlqat.trainer.layers.qat import QATEmbedding, QATLinear, teacher
from dlqat.trainer.rounding.search import search

CORNERS: dict[str, dict[str, Any]] = {
    "dl-qat": {},
    "peqa": {"rank": 0},
    "fq-lora": {"magnitude": False},
    "l4q": {"magnitude": False, "train_scales": True},
}
INT3 = Grid(3, 32)
GRIDS = [
    Grid(2, 64),
    Grid(3, 32),
    Grid(3, 32, mirrored=True),
    Grid(3, 16, symmetric=False),
    Grid(4, 32),
    Grid(4, 128, symmetric=False),
    Grid(4, None),
    Grid(8, None, symmetric=False),
]


def layer(corner: str = "dl-qat", grid: Grid = INT3, out: int = 40) -> QATLinear:
    """A trained-looking layer: LoRA and magnitudes away from their start."""
    fields = asdict(grid) | {"group_size": grid.group_size or 0, "rank": 8, "alpha": 16.0, **CORNERS[corner]}
    spec = LayerSpec(**fields)
    linear = nn.Linear(128, out)
    made = QATLinear(linear, spec, *search(linear.weight.detach(), spec.grid))
    with torch.no_grad():
        if made.lora_b is not None:
            made.lora_b.normal_(std=0.05)
        if made.magnitude is not None:
            made.magnitude.normal_(1.0, 0.1)
        made.offset = torch.randint(-60, 60, linear.weight.shape, dtype=torch.int8)
        # Away from ties and clip edges: there, sums in another order are another code.
        twice = 2 * position(made).flatten(1)
        made.offset[(twice - twice.round()).abs() < 0.01] += 1
    return made


def position(m: QATLinear) -> Tensor:
    """Where each weight stands on its grid before rounding, in steps [out, groups, group size]."""
    out, groups = m.scales.shape
    s = Snap.apply(m.scales, m.spec.grid)[..., None]  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess, reportUnknownMemberType]
    v = m.weight.view(out, groups, -1)
    if m.lora_a is not None and m.lora_b is not None:
        v = v + m.spec.scaling * (m.lora_b @ m.lora_a).view(out, groups, -1)
    if m.offset is not None:
        v = v + s * m.offset.view(out, groups, -1) / 64
    return v / s + (0 if m.zero_points is None else m.zero_points[..., None].float())  # pyright: ignore[reportUnknownVariableType]


class Round(torch.autograd.Function):
    """round with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Snap(torch.autograd.Function):
    """Rounding of scales with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Any) -> Tensor:
        return grid.round_scales(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def by_autograd(x: Tensor, m: QATLinear) -> Tensor:
    """The same layer written as the textbook has it; torch differentiates it."""
    out = m.scales.shape[0]
    s = Snap.apply(m.scales, m.spec.grid)[..., None]  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess, reportUnknownMemberType]
    z = 0 if m.zero_points is None else m.zero_points[..., None].float()
    q = Round.apply(torch.clamp(position(m), m.spec.grid.qmin, m.spec.grid.qmax))  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess, reportUnknownMemberType]
    gain = s if m.magnitude is None else Snap.apply(m.magnitude * s[..., 0], m.spec.grid)[..., None]  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess, reportUnknownMemberType]
    return x @ (gain * (q - z)).view(out, -1).T + m.bias


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("corner", CORNERS)
def test_folding_is_the_training_forward_bit_for_bit(corner: str, grid: Grid) -> None:
    """Law 2."""
    m = layer(corner, grid)
    folded = m.fold()
    assert torch.equal(dense(folded), m.made(torch.float32))
    assert check(folded, "a layer") is None
    assert torch.equal(folded.scales, m.spec.grid.round_scales(folded.scales))
    x = torch.randn(3, 5, 128)
    assert torch.equal(m(x), x @ dense(folded).T + m.bias)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("corner", ["dl-qat", "peqa", "fq-lora"])
def test_output_and_every_gradient_equal_those_of_autograd(corner: str, grid: Grid) -> None:
    m = layer(corner, grid)
    x = torch.randn(3, 5, 128, requires_grad=True)
    trained = {n: p for n, p in m.named_parameters() if p.requires_grad}
    assert set(trained) <= {"lora_a", "lora_b", "magnitude"}
    target = torch.randn(3, 5, 40)
    got = torch.autograd.grad((m(x) * target).sum(), [x, *trained.values()])
    want = torch.autograd.grad((by_autograd(x, m) * target).sum(), [x, *trained.values()])
    for name, a, b in zip(["x", *trained], got, want, strict=True):
        # float32 sums in another order
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("grid", [INT3, Grid(4, 16, symmetric=False)], ids=str)
def test_the_gradient_of_trained_scales_is_lsqs(grid: Grid) -> None:
    """L4Q: autograd's own gradient of the textbook form, times LSQ's 1 / sqrt(N qmax)."""
    m = layer("l4q", grid)
    x, target = torch.randn(7, 128), torch.randn(7, 40)
    got = torch.autograd.grad((m(x) * target).sum(), [m.scales])[0]
    want = torch.autograd.grad((by_autograd(x, m) * target).sum(), [m.scales])[0]
    want = want / (128 / m.scales.shape[1] * m.spec.grid.qmax) ** 0.5
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_magnitude_moves_no_code_and_its_gradient_is_the_finite_difference() -> None:
    m = layer("peqa", INT3)
    assert m.magnitude is not None
    codes = m.fold().codes
    x, target = torch.randn(9, 128), torch.randn(9, 40)
    grad = torch.autograd.grad((m(x) * target).sum(), [m.magnitude])[0]
    with torch.no_grad():
        # Along one group, far enough that snapping (2^-9 relative) is small beside the step.
        before = (m(x).double() * target).sum()
        m.magnitude[3, 1] += 0.5
        after = (m(x).double() * target).sum()
    assert torch.equal(m.fold().codes, codes)
    assert abs(float(after - before) / 0.5 - float(grad[3, 1])) < 0.02 * abs(float(grad[3, 1])) + 1e-3


def test_a_fresh_layer_is_the_rounded_base_and_the_teacher_is_the_float_layer() -> None:
    linear = nn.Linear(64, 24)
    spec = LayerSpec(4, 16)
    scales, zero_points = search(linear.weight.detach(), spec.grid)
    m = QATLinear(linear, spec, scales, zero_points)
    x = torch.randn(4, 64)
    assert torch.equal(m.made(torch.float32), dense(m.fold())) and not torch.equal(m(x), linear(x))
    with teacher(m):
        assert torch.equal(m(x), linear(x))
    assert not torch.equal(m(x), linear(x))


def test_large_weights_go_through_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    m = layer("dl-qat", Grid(3, 16, symmetric=False), out=37)
    grad = torch.randn(37, 128)
    whole = reference.weight_backward(m.weight, m.adapter(), grad, torch.float32)
    monkeypatch.setattr(reference, "BLOCK", 5 * 128)
    parts = reference.weight_backward(m.weight, m.adapter(), grad, torch.float32)
    assert torch.equal(whole[0], parts[0]) and torch.equal(parts[0], m.made(torch.float32))
    for name in ("lora_a", "lora_b", "magnitude"):
        torch.testing.assert_close(getattr(parts[1], name), getattr(whole[1], name))


def test_nothing_of_the_size_of_w_is_kept_for_the_backward() -> None:
    m = layer(out=64)
    x = torch.randn(2, 128, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        m(x).sum()
    assert max(t.numel() for t in saved) <= x.numel() < m.weight.numel()


def test_autocast_computes_in_bf16_and_keeps_float32_gradients() -> None:
    m = layer()
    x = torch.randn(4, 128)
    with torch.autocast("cpu", torch.bfloat16):
        y = m(x)
        y.sum().backward()
    want = (x.bfloat16() @ m.made(torch.bfloat16).T) + m.bias
    assert torch.equal(y, want)
    assert m.lora_a is not None and m.lora_a.grad is not None and m.lora_a.grad.dtype == torch.float32


def test_embedding_rows_lie_on_the_grid_and_equal_the_folded_ones() -> None:
    embedding = nn.Embedding(50, 32)
    spec = LayerSpec(8, 0, power_of_two=True, rank=0, magnitude=False)
    scales, _ = search(embedding.weight.detach(), spec.grid)
    m = QATEmbedding(embedding.weight, spec, scales, None)
    ids = torch.randint(0, 50, (2, 7))
    assert torch.equal(m(ids), dense(m.fold())[ids])
    assert torch.equal(m(ids).to(torch.bfloat16).float(), m(ids))
    with teacher(m):
        assert torch.equal(m(ids), embedding(ids))


@pytest.mark.parametrize("tokens", [1, 17])
def test_int8_activations_lie_on_256_levels_per_token_with_zero_among_them(tokens: int) -> None:
    x = torch.randn(tokens, 96) * torch.logspace(-3, 3, tokens)[:, None] + 0.5
    y = fake_quant(x)
    for row, made in zip(x, y, strict=True):
        span = float(row.max().clamp(min=0) - row.min().clamp(max=0))
        assert float((row - made).abs().max()) <= span / 255 * 0.5 * 1.01 + 1e-9 or tokens == 0
        assert len(made.unique()) <= 256
        levels = made.double() / (span / 255)
        assert float((levels - levels.round()).abs().max()) < 1e-3  # zero is a level
    assert torch.equal(fake_quant(torch.zeros(2, 8)), torch.zeros(2, 8))
    z = x.clone().requires_grad_()
    straight_through(z).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, torch.ones_like(z))
