# SPDX-License-Identifier: Apache-2.0
"""Laws of the grid: what is on it comes back, scales are the same number in every float format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlqat import adapter, folded
from dlqat.grid import BITS, GROUP_SIZES, SNAP_MAX, SNAP_MIN, Grid, dequantize, largest, power_of_two, quantize, snap
from dlqat.recipe import portable
from dlqat.refusal import Refusal
from dlqat.trainer import reach
from dlqat.trainer.rounding.search import COARSE, refit, search
from models import tiny

GRIDS = [Grid(b, g, s) for b in BITS for g in (*GROUP_SIZES, None) for s in (True, False)]


def values_on(grid: Grid, out: int = 5, inputs: int = 256) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Random codes, snapped scales and zero-points of a grid."""
    codes = torch.randint(grid.qmin, grid.qmax + 1, (out, inputs), dtype=torch.int8)
    groups = (out, grid.groups(inputs))
    scales = snap(torch.rand(groups) * 0.1 + 1e-3)
    zero_points = None if grid.symmetric else torch.randint(grid.qmin, grid.qmax + 1, groups, dtype=torch.int8)
    return codes, scales, zero_points


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_integers_on_the_grid_come_back_equal(grid: Grid) -> None:
    codes, scales, zero_points = values_on(grid)
    weight = dequantize(codes, scales, zero_points)
    assert torch.equal(quantize(weight, scales, zero_points, grid), codes)


@given(st.floats(min_value=0, max_value=1e6, allow_nan=False, width=32))
def test_a_snapped_scale_is_the_same_number_in_every_format(value: float) -> None:
    s = snap(torch.tensor([value]))
    assert SNAP_MIN <= float(s) <= SNAP_MAX
    assert torch.equal(s.to(torch.bfloat16).float(), s) and torch.equal(s.to(torch.float16).float(), s)
    assert torch.equal(snap(s), s)
    if SNAP_MIN <= value <= SNAP_MAX:
        assert abs(float(s) - value) <= value * 2.0**-8  # half a unit of 8 significant bits


@given(st.floats(min_value=0, max_value=1e6, allow_nan=False, width=32))
def test_with_seven_bits_every_lowest_value_of_a_group_is_a_number_of_fp16(value: float) -> None:
    s = snap(torch.tensor([value]), 7)
    assert SNAP_MIN <= float(s) <= largest(7) and torch.equal(snap(s, 7), s) and torch.equal(snap(s), s)
    if SNAP_MIN <= value <= largest(7):
        assert abs(float(s) - value) <= value * 2.0**-7
    lowest = s * torch.arange(-15, 1)
    inside = lowest[lowest >= -65504]
    assert torch.equal(inside.half().float(), inside)


@given(st.floats(min_value=2.0**-20, max_value=30000.0, width=32))
def test_power_of_two_rounds_up_and_an_int8_code_times_it_is_exact_in_bf16(value: float) -> None:
    s = power_of_two(torch.tensor([value]))
    assert float(s) >= value and (float(s) < 2 * value or float(s) == SNAP_MIN)
    codes = torch.arange(-128, 128).float()
    assert torch.equal((codes * s).to(torch.bfloat16).float(), codes * s)


@pytest.mark.parametrize("inputs", [48, 100])
def test_a_group_that_does_not_divide_is_refused_with_the_sizes_that_do(inputs: int) -> None:
    reason = Grid(4, 32).refuses(inputs)
    assert reason is not None and "per channel" in reason and ("16" in reason) == (inputs % 16 == 0)
    assert Grid(4, None).refuses(inputs) is None


@pytest.mark.parametrize("bad", [{"bits": 6}, {"group_size": 48}])
def test_a_grid_that_no_target_has_cannot_be_made(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        Grid(**bad)


@pytest.mark.parametrize("grid", [Grid(3, 32), Grid(3, 32, symmetric=False), Grid(2, 64), Grid(8, None)], ids=str)
def test_search_beats_min_max_and_gives_scales_of_the_grid(grid: Grid) -> None:
    weight = torch.randn(64, 256) ** 3  # heavy tails
    scales, zero_points = search(weight, grid)
    assert torch.equal(grid.round_scales(scales), scales)
    assert (zero_points is None) == grid.symmetric

    def error(s: torch.Tensor, z: torch.Tensor | None) -> float:
        return float((dequantize(quantize(weight, s, z, grid), s, z) - weight).square().sum())

    w = weight.view(64, grid.groups(256), -1)
    if grid.symmetric:
        plain = grid.round_scales(w.abs().amax(-1) / grid.qmax)
        assert error(scales, None) <= error(plain, None)
    else:
        low, high = w.amin(-1), w.amax(-1)
        plain = grid.round_scales((high - low) / (grid.qmax - grid.qmin))
        zeros = (grid.qmin - (low / plain).round()).clamp(grid.qmin, grid.qmax).to(torch.int8)
        assert error(scales, zero_points) <= error(plain, zeros)


ON_GRID = (
    Grid(2, 32),
    Grid(3, 32, mirrored=True),
    Grid(4, 32),
    Grid(4, None),
    Grid(4, 32, symmetric=False),
    Grid(8, 64),
)


@pytest.mark.parametrize("largest", [2, 3, 6, 8, 100])
@pytest.mark.parametrize("grid", ON_GRID, ids=str)
def test_search_keeps_a_weight_that_lies_on_the_grid(grid: Grid, largest: int) -> None:
    """Whatever the largest code is: training has moved it away from the end of the grid."""
    ends = grid.folded
    low, high = max(-largest, ends.qmin, -4 if grid.mirrored else ends.qmin), min(largest, grid.qmax)
    codes = torch.randint(low, high + 1, (16, 256), dtype=torch.int8)
    scales = grid.round_scales(torch.rand(16, grid.groups(256)) * 0.02)
    weight = dequantize(codes, scales, None)
    for found in (search(weight, grid), search(weight, grid, torch.rand(256), COARSE)):
        refitted = refit(weight, found, grid, torch.rand(256)), found[1]
        assert torch.equal(dequantize(quantize(weight, *refitted, grid), *refitted), weight)


def test_search_knows_which_inputs_matter() -> None:
    weight, importance = torch.randn(8, 64), torch.ones(64)
    importance[::8] = 1000.0
    grid = Grid(2, 32)

    def weighted(s: torch.Tensor) -> float:
        return float(((dequantize(quantize(weight, s, None, grid), s, None) - weight).square() * importance).sum())

    assert weighted(search(weight, grid, importance)[0]) < weighted(search(weight, grid)[0])


def test_a_mirrored_grid_puts_the_odd_level_where_it_serves() -> None:
    """A weight and its negative are held equally well, which a plain symmetric grid cannot; all fits in int4."""
    weight = torch.randn(32, 64)
    plain, mirrored = Grid(3, 32), Grid(3, 32, mirrored=True)

    def fold(w: torch.Tensor, grid: Grid) -> torch.Tensor:
        leaf = adapter.fold(w, adapter.Adapter(grid, *search(w, grid)))
        assert folded.check(leaf, "w") is None and leaf.grid == grid.folded and leaf.zero_points is None
        return folded.dense(leaf)

    errors = [(fold(w, mirrored) - w).square().view(32, 2, -1).sum(-1) for w in (weight, -weight)]
    assert torch.equal(*errors)
    for w, error in zip((weight, -weight), errors, strict=True):
        assert (error <= (fold(w, plain) - w).square().view(32, 2, -1).sum(-1) * (1 + 1e-6)).all()
    signs = search(weight, mirrored)[1]
    assert signs is not None and set(signs.unique().tolist()) == {-1, 0}


@pytest.mark.parametrize("wrong", [{"bits": 4}, {"bits": 3, "symmetric": False}], ids=str)
def test_what_cannot_be_mirrored_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only symmetric 3 bits can be mirrored"):
        Grid(**wrong, mirrored=True)


def test_a_mirrored_layer_with_other_zero_points_is_refused() -> None:
    weight, grid = torch.randn(8, 32), Grid(3, 32, mirrored=True)
    scales, signs = search(weight, grid)
    assert signs is not None
    assert adapter.damage(adapter.Adapter(grid, scales, signs)) is None
    assert (
        adapter.damage(adapter.Adapter(grid, scales, torch.full_like(signs, -2)))
        == "zero_points of a mirrored grid are 0 or -1"
    )
    assert "symmetry" in (adapter.damage(adapter.Adapter(grid, scales)) or "")


# -- where scales end


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 32, mirrored=True), Grid(8, None, power_of_two=True)], ids=str)
def test_what_scales_do_not_reach_is_measured(grid: Grid) -> None:
    weight = torch.randn(64, 64)
    small = [reach.lost(weight * 2.0**-k, grid) for k in range(24)]
    assert small[:6] == [0.0] * 6 and small[16] > 0.5 and small[23] == pytest.approx(1, abs=0.1)
    assert [reach.lost(weight * 2.0**k, grid) for k in (0, 10)] == [0.0, 0.0] and reach.lost(
        weight * 2.0**30, grid
    ) > 0.5
    assert reach.lost(torch.zeros(64, 64), grid) == 0
    weight[:32] *= 2.0**-20  # rows of almost nothing beside others: nothing of the layer is lost
    assert reach.lost(weight, grid) == 0


def test_a_layer_that_scales_do_not_reach_is_refused_by_name() -> None:
    model = tiny("llama")
    reach.check(model, portable())
    name = "model.layers.1.mlp.up_proj"
    model.get_submodule(name).weight.data.mul_(2.0**-11)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with pytest.raises(Refusal, match=rf"{name}: its weights are about 4\..e-05, which .* [0-9]+% of the layer"):
        reach.check(model, portable())
