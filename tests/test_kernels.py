# SPDX-License-Identifier: Apache-2.0
"""Law 5: the Triton kernels equal the reference in output and every gradient.

Without a GPU they run in Triton's interpreter (conftest.py); with one, the same tests run on it. Values are chosen so that
float32 sums are exact where equality is claimed: what remains is the kernels' own arithmetic.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is for Linux only")

from dlqat.adapter import Adapter, fixed_point  # noqa: E402
from dlqat.grid import SNAP_MAX, SNAP_MIN, Grid  # noqa: E402
from dlqat.trainer.kernels import reference, triton  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
GRIDS = [
    (2, 64, True),
    (3, 32, False),
    (3, 16, True),
    (4, 128, False),
    (4, None, True),
    (8, None, False),
    (8, 32, True),
]
CORNERS = ("dl-qat", "peqa", "fq-lora", "l4q", "prepared", "l4q-prepared", "base8")
# Every grid in the layer as it is, every corner and start on one asymmetric and one per-channel grid.
CASES = [(g, "dl-qat") for g in GRIDS] + [(g, c) for g in (GRIDS[1], GRIDS[4]) for c in CORNERS[1:]]
SHAPES = [(40, 128), (33, 256), (1, 384)]


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel does not write is NaN: equality then fails."""
    empty = torch.empty

    def poisoned(*args: object, **options: object) -> Tensor:
        made: Tensor = empty(*args, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


def problem(
    grid: tuple[int, int | None, bool], corner: str, shape: tuple[int, int], dtype: torch.dtype, exact: bool = True
) -> tuple[Tensor, Adapter]:
    """Weights on multiples of 1/64 of power-of-two steps: sums are exact, and ties and clip edges are many."""
    out, inputs = shape
    g = Grid(*grid)
    generator = torch.Generator().manual_seed(zlib.crc32(repr((grid, corner, shape)).encode()))

    def integers(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=generator)

    groups = g.groups(inputs)
    scales = torch.full((out, groups), 2.0**-6)
    scales *= torch.ones(()) if exact else torch.rand(out, groups, generator=generator) + 0.5
    reach = 2 * -g.qmin
    weight = integers(-4 * reach, 4 * reach, out, inputs).float() * 2.0**-8  # a quarter of a step: a tie in four
    if not exact:
        weight += torch.randn(out, inputs, generator=generator) * 2.0**-7
    a = integers(-4, 5, 5, inputs).float() if exact else torch.randn(5, inputs, generator=generator)
    b = integers(-4, 5, out, 5).float() * 2.0**-10 if exact else torch.randn(out, 5, generator=generator) * 2.0**-10
    lora = corner != "peqa"
    adapter = Adapter(
        g,
        scales,
        None if g.symmetric else integers(g.qmin, g.qmax + 1, out, groups).to(torch.int8),
        0.5 + torch.rand(out, groups, generator=generator) if not corner.startswith(("fq-lora", "l4q")) else None,
        a if lora else None,
        b if lora else None,
        2.0,
        integers(-128, 128, out, inputs).to(torch.int8) if corner.endswith("prepared") else None,
    )
    weight = fixed_point(weight, scales, g) if corner == "base8" and g.bits < 8 else weight.to(dtype)
    return weight.to(DEVICE), on_device(adapter)


def on_device(adapter: Adapter) -> Adapter:
    moved = {k: v.to(DEVICE) for k, v in vars(adapter).items() if isinstance(v, Tensor)}
    return replace(adapter, **moved)


def close(name: str, got: Tensor, want: Tensor, ratio: float) -> None:
    """Root mean square of the difference over that of `want`; NaN fails."""
    assert got.shape == want.shape and got.dtype == want.dtype, name
    error = float((got - want).double().norm() / want.double().norm().clamp(min=1e-30))
    assert error <= ratio, f"{name}: {error:.3g} > {ratio}"


@pytest.mark.parametrize(("grid", "corner"), CASES, ids=str)
def test_the_weight_is_the_references_bit_for_bit(grid: tuple[int, int | None, bool], corner: str) -> None:
    for shape, dtype in zip(SHAPES, (torch.float32, torch.bfloat16, torch.float16), strict=True):
        weight, adapter = problem(grid, corner, shape, dtype)
        got = triton.weight_forward(weight, adapter, dtype)
        assert torch.equal(got, reference.weight_forward(weight, adapter, dtype)), (shape, dtype)


@pytest.mark.parametrize(("grid", "corner"), CASES, ids=str)
def test_every_gradient_is_the_references(grid: tuple[int, int | None, bool], corner: str) -> None:
    """Exact but for dA, dB and sums of products with rounded factors, where only the order of the sum differs."""
    out, inputs = shape = SHAPES[1]
    weight, adapter = problem(grid, corner, shape, torch.bfloat16)
    dy = torch.randint(-3, 4, (37, out), device=DEVICE).float()
    x = torch.randint(-3, 4, (37, inputs), device=DEVICE).float()
    g, train_scales = dy.T @ x, corner.startswith("l4q")
    made, got = triton.weight_backward(weight, adapter, g, g.dtype, train_scales)
    wanted, want = reference.weight_backward(weight, adapter, g, g.dtype, train_scales)
    assert torch.equal(made, wanted)
    for name, tensor in vars(want).items():
        other = getattr(got, name)
        assert (tensor is None) == (other is None), name
        if tensor is not None:
            close(name, other, tensor, 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_half_precision_products(dtype: torch.dtype) -> None:
    weight, adapter = problem((4, 32, True), "dl-qat", (48, 256), dtype, exact=False)
    dy, x = torch.randn(70, 48, device=DEVICE).to(dtype), torch.randn(70, 256, device=DEVICE).to(dtype)
    made, got = triton.weight_backward(weight, adapter, dy.T @ x, dtype)
    exact = dy.float().T @ x.float()
    wanted, want = reference.weight_backward(weight, adapter, exact, dtype)
    assert torch.equal(made, wanted)
    for name in ("magnitude", "lora_a", "lora_b"):
        # dL/dW' is rounded to the products' dtype, 2^-9 of each term.
        close(name, getattr(got, name), getattr(want, name), 2.0**-8)


def test_random_weights_differ_at_most_where_the_low_rank_sum_meets_a_tie() -> None:
    """B A is summed in another order: a code may move only where V / s is within rounding of a tie."""
    weight, adapter = problem((4, 32, True), "dl-qat", (64, 1024), torch.float32, exact=False)
    got = triton.weight_forward(weight, adapter, torch.float32)
    want = reference.weight_forward(weight, adapter, torch.float32)
    assert float((got != want).float().mean()) < 1e-4


@pytest.mark.parametrize("rounding", [{"power_of_two": True}, {"scale_bits": 7}, {"scale_bits": 8}], ids=str)
def test_scales_are_snapped_as_the_grid_snaps_them(rounding: dict[str, Any]) -> None:
    """Ties between two 7-bit and two 8-bit numbers, both ends of the range, and every exponent between."""
    bits = torch.arange(0x3F800000, 0x3F800000 + 4 * 65536, 4096, dtype=torch.int32)
    ties = bits.view(torch.float32)
    edges = torch.tensor([SNAP_MIN, SNAP_MIN / 3, 1e-30, SNAP_MAX, SNAP_MAX * 1.01, 3e38, 2.0**15, 2.0**15 * 1.5])
    scales = torch.cat([ties, ties * 2.0**-10, ties * 2.0**13, edges])[:, None].to(DEVICE)
    grid = Grid(8, None, **rounding)
    weight = torch.randn(len(scales), 8, device=DEVICE) * scales.clamp(SNAP_MIN, SNAP_MAX)
    adapter = Adapter(grid, scales)
    got = triton.weight_forward(weight, adapter, torch.float32)
    assert torch.equal(got, reference.weight_forward(weight, adapter, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("features", [1, 60, 64, 1000])
def test_int8_activations_are_the_references_bit_for_bit(dtype: torch.dtype, features: int) -> None:
    x = torch.randn(9, features, device=DEVICE) * torch.logspace(-3, 3, 9, device=DEVICE)[:, None] + 0.3
    x[3] = 0
    x[4] = x[4].abs()
    x[5] = -x[5].abs()
    x[6] = (x[6] * 4).round() / 4  # many equal values and ties
    x = x.to(dtype).view(3, 3, features)
    assert torch.equal(triton.fake_quant(x), reference.fake_quant(x))
    assert triton.fake_quant(x[:0]).shape == (0, 3, features)


@pytest.mark.skipif(not GPU, reason="races show on a GPU only; none is here")
def test_results_do_not_depend_on_the_order_of_programs() -> None:
    weight, adapter = problem((4, 32, True), "dl-qat", (1024, 2048), torch.bfloat16, exact=False)
    g = torch.randn(1024, 2048, device=DEVICE, dtype=torch.bfloat16)
    _, first = triton.weight_backward(weight, adapter, g, g.dtype)
    for _ in range(20):
        _, again = triton.weight_backward(weight, adapter, g, g.dtype)
        assert all(torch.equal(getattr(first, n), getattr(again, n)) for n in ("lora_a", "lora_b", "magnitude"))


def test_negative_control_rounding_half_away_from_zero_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, adapter = problem((4, 32, True), "peqa", (40, 128), torch.float32)
    got = triton.weight_forward(weight, adapter, torch.float32)
    monkeypatch.setattr(Tensor, "round_", lambda t: t.copy_(t.sign() * (t.abs() + 0.5).floor()))
    assert not torch.equal(got, reference.weight_forward(weight, adapter, torch.float32))
