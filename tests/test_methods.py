# SPDX-License-Identifier: Apache-2.0
"""The mathematics of the compression methods beside what nobody here wrote: scikit-learn, brute force, float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from dlqat import plan, tree
from dlqat.adapter import Adapter, fold
from dlqat.folded import Quantized, dense
from dlqat.grid import Grid, dequantize, quantize
from dlqat.plan import Pruned
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal
from dlqat.trainer.methods.allocation import allocate, counts, ideal
from dlqat.trainer.methods.kmeans import inertia, kmeans
from dlqat.trainer.methods.nm import holds, saliency_svd, wanda
from dlqat.trainer.methods.ternary import progressive, refit, ternary
from dlqat.trainer.methods.whitened import whitened
from dlqat.trainer.rounding.gptq import DAMPING, Pattern, compensate, sweep
from dlqat.trainer.rounding.offset import offset
from dlqat.trainer.rounding.to_grid import factors, to_grid
from dlqat.trainer.starts import by_name
from dlqat.tree import Clustered, LowRank, Sum


def layer(out: int = 32, inputs: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random weight and the second moments of correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inputs, generator=generator)
    mix = torch.randn(inputs, inputs, generator=generator) * torch.linspace(0.2, 3, inputs)
    x = torch.randn(600, inputs, generator=generator) @ mix
    return weight, x.T @ x


def output_error(weight: Tensor, other: Tensor, moments: Tensor) -> float:
    """|(W - W') X|^2 in float64."""
    e = (weight - other).double()
    return float(((e @ moments.double()) * e).sum())


# GPTQ


def obs_by_hand(weight: Tensor, hessian: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """GPTQ from its definition, in float64: round one column, then move all later ones to the exact minimum of the
    quadratic error, solved afresh each time. No Cholesky factor, no blocks."""
    w, h = weight.double().clone(), hessian.double()
    h = h + DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    done = torch.empty_like(w)
    for j in range(w.shape[1]):
        done[:, j] = (w[:, j] / scale).round().clamp(grid.qmin, grid.qmax) * scale
        rest = slice(j + 1, w.shape[1])
        # rest' = argmin over later columns of |(W - W') X|^2, the earlier ones and this one fixed
        e = (weight.double() - done)[:, : j + 1]
        if j + 1 < w.shape[1]:
            w[:, rest] = weight.double()[:, rest] + e @ h[: j + 1, rest] @ torch.linalg.inv(h[rest, rest])
    return done


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_is_the_sequence_of_exact_minima(bits: int) -> None:
    weight, moments = layer(8, 24)
    grid = Grid(bits, None)
    made, scales, _ = compensate(weight, moments, grid)
    own = dequantize(quantize(made, scales, None, grid), scales, None)
    wanted = obs_by_hand(weight, moments, scales[:, 0].double(), grid)
    assert torch.allclose(own.double(), wanted, atol=1e-6)


def test_gptq_lies_between_rounding_and_the_best_codes() -> None:
    """All 8^5 rows of a tiny layer: GPTQ is a greedy way to the best one, and better than rounding on average."""
    grid, totals = Grid(3, None), torch.zeros(3, dtype=torch.float64)
    levels = torch.tensor(list(itertools.product(range(-4, 4), repeat=5)), dtype=torch.float64)
    for seed in range(8):
        weight, moments = layer(4, 5, seed)
        made, scales, _ = compensate(weight, moments, grid)
        own, plain = (dequantize(quantize(w, scales, None, grid), scales, None) for w in (made, weight))
        for row in range(4):
            e = weight[row].double() - levels * scales[row].double()
            best = float(((e @ moments.double()) * e).sum(1).min())
            errors = [output_error(weight[row : row + 1], w[row : row + 1], moments) for w in (plain, own)]
            assert best <= errors[1] * (1 + 1e-9)
            totals += torch.tensor([*errors, best], dtype=torch.float64) / errors[0]
    assert totals[2] <= totals[1] < totals[0]


def test_the_offset_reaches_any_code() -> None:
    """What SparseGPT makes lies further than two steps away: int16. Codes are exact either way."""
    weight, moments = layer()
    grid = Grid(4, 16)
    for pattern, dtype in ((None, torch.int8), (Pattern(1, 8), torch.int16)):
        swept = sweep(weight, moments / 100, grid, pattern)
        way = offset(swept.made, weight, swept.scales, None, grid)
        assert way.dtype == dtype
        found = fold(weight, Adapter(grid, swept.scales, offset=way, mask=swept.mask))
        wanted = quantize(swept.made, swept.scales, None, grid)
        assert torch.equal(found.codes, wanted if swept.mask is None else wanted * swept.mask)


# SWSC


@pytest.mark.parametrize("clusters", [4, 16, 40])
def test_kmeans_is_as_good_as_scikit_learns(clusters: int) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(12, 24, generator=generator) * 3
    points = centres[torch.randint(0, 12, (160,), generator=generator)] + torch.randn(160, 24, generator=generator)
    means, labels = kmeans(points, clusters)
    theirs = KMeans(clusters, n_init=3, random_state=0).fit(points.numpy())
    # Both are local minima from random starts; 5 % is the spread of scikit-learn's own starts here.
    assert inertia(points, means, labels) <= 1.05 * theirs.inertia_
    own = KMeans(clusters, init=means.numpy(), n_init=1).fit(points.numpy())
    assert inertia(points, means, labels) == pytest.approx(own.inertia_, rel=1e-5)  # Lloyd's fixed point
    worse = (labels + 1) % clusters
    assert inertia(points, means, worse) > 1.2 * theirs.inertia_  # the negative control


def test_kmeans_of_duplicates_and_of_every_point() -> None:
    points = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    means, labels = kmeans(points, 3)
    assert inertia(points, means, labels) == 0
    assert inertia(points * torch.arange(4)[:, None], *kmeans(points * torch.arange(4)[:, None], 4)) == 0


def test_swsc_is_its_formula() -> None:
    """W'' = R[labels] + A B with everything read back from the tensors; the paper's bits at its own setting."""
    method = by_name.value("swsc", ["clusters=0.25", "rank=0.25"])
    weight, spec = layer(64, 64)[0], LayerSpec(8, 16)
    name = "model.layers.0.self_attn.q_proj"
    node = method.plan({name: spec}, {name: (64, 64)}, [1.0])[name]
    assert isinstance(node, Sum)
    tensors = method.make(name, node, weight, None)
    made = _fold(node, name, tensors, weight)
    means = _fold(spec, f"{name}.0.centroids", tensors, tensors[f"{name}.0.centroids.weight"])
    left, right = (_fold(spec, f"{name}.1.{s}", tensors, tensors[f"{name}.1.{s}.weight"]) for s in ("left", "right"))
    assert torch.equal(made, means[tensors[f"{name}.0.labels"].long()] + left @ right)
    rest = (weight - means[tensors[f"{name}.0.labels"].long()]).double()
    tail = torch.linalg.svdvals(rest)[16:].square().sum()
    exact = float((rest - _float(tensors, f"{name}.1")).square().sum())
    assert exact == pytest.approx(float(tail), rel=1e-5)
    paper = by_name.value("swsc", [])
    big = Sum((Clustered(LayerSpec(), 256), LowRank(LayerSpec(), LayerSpec(), 128)))
    assert paper.paper_bits(big, (4096, 4096)) == pytest.approx(2.0, abs=0.003)


def _float(tensors: dict[str, Tensor], path: str) -> Tensor:
    return tensors[f"{path}.left.weight"].double() @ tensors[f"{path}.right.weight"].double()


def _fold(node: plan.Node, name: str, tensors: dict[str, Tensor], weight: Tensor) -> Tensor:
    """The weight that a node means, from the tensors of the adapter file."""
    leaves = {leaf.path: leaf for leaf in plan.leaves(node, name, (weight.shape[0], weight.shape[1]))}

    def one(path: str) -> Quantized:
        leaf = leaves[path]
        fields = {k: tensors.get(f"{path}.{k}") for k in ("zero_points", "offset", "mask")}
        base = tensors[f"{path}.weight"] if leaf.own else weight
        return fold(base, Adapter(leaf.spec.grid, tensors[f"{path}.scales"], **fields))

    return dense(tree.mapped(node, name, one, tensors.__getitem__))


# CASP


def test_the_whitened_svd_loses_exactly_the_tail() -> None:
    weight, moments = layer(24, 40)
    values = torch.linalg.svdvals(weight.double() @ torch.linalg.cholesky(moments.double()))
    for rank in (1, 8, 23):
        left, right = whitened(weight, moments, rank)
        error = output_error(weight, left @ right, moments)
        assert error == pytest.approx(float(values[rank:].square().sum()), rel=1e-9)
        u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        assert error < output_error(weight, (u[:, :rank] * s[:rank]) @ v[:rank], moments)  # the plain SVD


def test_fewer_tokens_than_inputs_and_dead_inputs() -> None:
    weight = layer(16, 40)[0]
    x = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 0
    left, right = whitened(weight, x.T @ x, 16)
    assert bool(torch.isfinite(left).all() and torch.isfinite(right).all())
    assert output_error(weight, left @ right, x.T @ x) < output_error(weight, torch.zeros_like(weight), x.T @ x)


def test_factors_are_rounded_for_what_they_read() -> None:
    """The left factor sees R x: its moments are R H R^T, and gptq on them beats rounding to nearest."""
    weight, moments = layer(64, 64)
    node = LowRank(LayerSpec(3, 16), LayerSpec(3, 16), 32)
    parts = [p.float() for p in whitened(weight, moments, 32)]
    _, plain = factors(*parts, node, "x", "mse", moments)
    tensors, good = factors(*parts, node, "x", "gptq", moments)
    assert output_error(weight, good, moments) < output_error(weight, plain, moments)
    assert torch.equal(good, _fold(node, "x", tensors, weight))


def test_bits_follow_the_closed_form_and_keep_the_budget() -> None:
    influence, sizes = [0.4, 0.05, 0.05, 0.01, 0.1, 0.3], [1.0] * 6
    wanted = ideal(influence, sizes, 3.0)
    assert sum(wanted) == pytest.approx(18)
    slopes = [s * 4.0**-b for s, b in zip(influence, wanted, strict=True)]
    assert max(slopes) == pytest.approx(min(slopes))  # Lagrange: equal marginal gains
    bits = allocate(influence, sizes, 3.0, (2, 3, 4))
    assert sum(bits) == 18 and bits[0] == 4 and bits[3] == 2
    assert allocate(influence, sizes, 3.0, (4, 2)) and sum(allocate(influence, sizes, 3.0, (4, 2))) <= 18
    assert allocate([1.0] * 3, [1.0] * 3, 2.5, (2, 3)).count(3) == 1  # whole bits only: the rest of the budget stays
    assert allocate(influence, sizes, 9.0, (2, 3, 4)) == [4] * 6
    with pytest.raises(ValueError, match="less than 2"):
        allocate(influence, sizes, 1.9, (2, 3))


def test_bits_are_the_best_of_all_where_the_budget_is_tight() -> None:
    """Brute force over 3^5 allocations: the greedy one is within 10 % of the least sum of s_l 4^-b_l, or better."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        influence = torch.rand(5, generator=generator).add(0.02).tolist()
        found = allocate(influence, [1.0] * 5, 3.0, (2, 3, 4))
        all_bits = [b for b in itertools.product((2, 3, 4), repeat=5) if sum(b) <= 15]
        best = min(sum(s * 4.0**-b for s, b in zip(influence, bits, strict=True)) for bits in all_bits)
        assert sum(s * 4.0**-b for s, b in zip(influence, found, strict=True)) <= 1.1 * best


def test_casp_gives_keys_of_grouped_queries_their_own_rank_and_keeps_the_average() -> None:
    shapes = {
        f"model.layers.{i}.self_attn.{x}_proj": s
        for i in range(4)
        for x, s in (("q", (576, 576)), ("k", (192, 576)), ("v", (192, 576)))
    }
    method = by_name.value("casp", ["average=3"])
    nodes = method.plan(dict.fromkeys(shapes, LayerSpec(3, 32)), shapes, [0.3, 0.1, 0.01, 0.2])
    q, k = (nodes[f"model.layers.0.self_attn.{x}_proj"] for x in "qk")
    assert isinstance(q, LowRank) and q.rank == 64  # 0.25 * 576 / 2 = 72, a multiple of 32
    assert isinstance(k, LowRank) and k.rank == 32  # 0.25 * 192 * 576 / 768 = 36
    size = sum(a * b for a, b in shapes.values())
    spent = sum(method.paper_bits(node, shapes[n]) * shapes[n][0] * shapes[n][1] for n, node in nodes.items())
    assert spent / size <= 3
    with pytest.raises(Refusal, match="average of 1 bits"):
        by_name.value("casp", ["average=1"]).plan(dict.fromkeys(shapes, LayerSpec(3, 32)), shapes, [1.0] * 4)


# N:M


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 16)])
def test_masks_hold_their_pattern_and_keep_the_best(n: int, m: int) -> None:
    weight, moments = layer()
    scores = wanda(weight, moments)
    by_hand = weight.double().abs() * moments.double().diagonal().sqrt()  # Wanda's definition, in float64
    mask = Pattern(n, m).mask(scores)
    assert holds(mask, n, m) and int(mask.sum()) == weight.numel() * n // m
    assert not holds(torch.ones_like(mask), n, m)
    for row, kept in zip(by_hand.view(-1, m), mask.view(-1, m), strict=True):
        assert set(row.argsort(descending=True)[:n].tolist()) == set(kept.nonzero().flatten().tolist())
    swept = sweep(weight, moments, Grid(4, 16), Pattern(n, m))
    assert swept.mask is not None and holds(swept.mask, n, m)
    assert bool((swept.made[~swept.mask] == 0).all())


def test_the_first_group_of_sparsegpt_is_the_surgeons_choice() -> None:
    """Optimal brain surgeon on the first m columns: score w^2 / [H^-1]_jj of the inverse that is left at column j."""
    weight, moments = layer()
    h = moments.double()
    h = h + DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    scores = torch.stack([weight[:, j].double().square() / torch.linalg.inv(h[j:, j:])[0, 0] for j in range(4)], 1)
    swept = sweep(weight, moments, Grid(8, 16), Pattern(2, 4))
    assert swept.mask is not None
    assert torch.equal(swept.mask[:, :4], torch.zeros(32, 4, dtype=torch.bool).scatter(1, scores.topk(2).indices, True))


def test_compensation_pays_and_the_correction_pays_more() -> None:
    weight, moments = layer(64, 64)
    spec = LayerSpec(4, 16)
    names = {"obs": [], "wanda": ["score=wanda"], "obs+lr": ["low_rank=0.25"]}
    errors = {}
    for name, settings in names.items():
        method = by_name.value("nm", settings)
        node = method.plan({"x.0.q_proj": spec}, {"x.0.q_proj": (64, 64)}, [])["x.0.q_proj"]
        tensors = method.make("x.0.q_proj", node, weight, moments)
        errors[name] = output_error(weight, _fold(node, "x.0.q_proj", tensors, weight), moments)
    assert errors["obs+lr"] < errors["obs"] < errors["wanda"]


def test_the_correction_is_the_best_of_its_weighted_norm() -> None:
    error, moments = layer(24, 40)
    left, right = saliency_svd(error, moments, 8)
    scale = moments.double().diagonal().sqrt()
    lost = ((error.double() - left @ right) * scale).square().sum()
    tail = torch.linalg.svdvals(error.double() * scale)[8:].square().sum()
    assert float(lost) == pytest.approx(float(tail), rel=1e-9)


def test_ternary_codes_and_their_refit() -> None:
    weight, moments = layer(16, 64)
    grid = Grid(2, 32)
    swept = ternary(weight, moments, grid, Pattern(4, 8))
    assert swept.mask is not None and holds(swept.mask, 4, 8)
    codes = quantize(swept.made, swept.scales, None, grid)
    assert set(codes.unique().tolist()) == {-1, 0, 1}
    assert torch.equal(codes != 0, swept.mask)
    signs = torch.where(weight[:, :32] >= 0, 1.0, -1.0)
    block = moments[:32, :32]
    a = refit(weight[:, :32], signs, block)
    for moved in (0.99, 1.01):  # the refit is a minimum
        assert output_error(weight[:, :32], a[:, None] * signs, block) < output_error(
            weight[:, :32], moved * a[:, None] * signs, block
        )


def test_progressive_pruning_beats_pruning_at_once() -> None:
    """By the paper's score, which mu = 0 leaves as it is from step to step, refitted alike."""
    totals = torch.zeros(2)
    for seed in range(6):
        weight, moments = layer(32, 32, seed)
        signs = torch.where(weight >= 0, 1.0, -1.0)
        kept, a = progressive(weight, moments, Pattern(4, 8))
        assert holds(kept, 4, 8)
        inverse = torch.linalg.inv(moments + DAMPING * moments.diagonal().mean() * torch.eye(32))
        once = Pattern(4, 8).mask((weight / inverse.diagonal()).square())
        b = refit(weight, signs * once, moments)
        totals += torch.tensor(
            [output_error(weight, x[:, None] * signs * m, moments) for x, m in ((a, kept), (b, once))]
        )
    assert totals[0] < 0.9 * totals[1]


@pytest.mark.parametrize(("blocks", "average", "spread"), [(30, 4, 1), (32, 4, 3), (5, 2, 1), (1, 4, 2)])
def test_the_coarse_stage_keeps_the_average_and_follows_influence(blocks: int, average: int, spread: int) -> None:
    influence = torch.rand(blocks, generator=torch.Generator().manual_seed(0)).tolist()
    found = counts(influence, average, spread)
    assert sum(found) <= average * blocks and (blocks == 1 or sum(found) == average * blocks)
    assert [found[i] for i in sorted(range(blocks), key=influence.__getitem__)] == sorted(found)
    if blocks > 1:
        assert (min(found), max(found)) == (average - spread, average + spread)
    # The paper's own form, floor(N_low + (N_high - N_low) rank + 1/2), is the same but where it meets a half.
    ranks = [sorted(influence).index(x) / max(1, blocks - 1) for x in influence]
    theirs = [int(average - spread + 2 * spread * r + 0.5) for r in ranks]
    assert all(a == b for a, b, r in zip(found, theirs, ranks, strict=True) if (2 * spread * r) % 1 != 0.5)


def test_a_spread_reaches_the_masks() -> None:
    weight, moments = layer(32, 64)
    shapes = {f"x.{i}.q_proj": (32, 64) for i in range(3)}
    for score in ("obs", "wanda", "ternary"):
        bits = 2 if score == "ternary" else 4
        method = by_name.value("nm", [f"score={score}", "n=4", "m=8", "spread=1"])
        nodes = method.plan(dict.fromkeys(shapes, LayerSpec(bits, 32)), shapes, [0.3, 0.1, 0.2])
        assert plan.from_json(plan.to_json(nodes), "x") == nodes
        for name, count in zip(shapes, (5, 3, 4), strict=True):
            mask = method.make(name, nodes[name], weight, moments)[f"{name}.mask"]
            assert holds(mask, count, 8) and not holds(mask, count - 1, 8)
        assert sum(method.paper_bits(nodes[n], shapes[n]) for n in shapes) == pytest.approx(3 * bits / 2)


# Plans and options


def test_plans_travel_as_json_and_count_their_bits() -> None:
    spec = LayerSpec(4, 32)
    node = Sum((Clustered(spec, 16), LowRank(spec, spec, 32), Pruned(2, 4, spec)))
    assert plan.from_json(plan.to_json({"q": node}), "x") == {"q": node}
    codes = 4 * (16 * 64 + 32 * 48 + 32 * 64 + 48 * 64)
    scales = 16 * (16 * 2 + 48 * 1 + 32 * 2 + 48 * 2)
    assert plan.bits(node, (48, 64)) == codes + scales + 48 * 4
    with pytest.raises(Refusal, match="no plan"):
        plan.from_json({"q": {"kind": "magic"}}, "plan.json")
    with pytest.raises(Refusal, match="q.left: group_size 32 does not divide its 48"):
        plan.check({"q": LowRank(spec, spec, 48)}, {"q": (64, 64)})


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("magic", [], "not one of mse, weighted"),
        ("rtn", ["keep=1"], "no options"),
        ("casp", ["keep=x"], "not a float"),
        ("casp", ["kept=0.5"], "keep, average"),
        ("casp", ["keep=2"], "between 0 and 1"),
        ("casp", ["choices=2,6"], "bits are"),
        ("casp", ["layers=("], "casp"),
        ("swsc", ["clusters=0"], "between 0 and 1"),
        ("swsc", ["rounding=up"], "mse, gptq"),
        ("nm", ["n=4"], "n < m"),
        ("nm", ["score=magic"], "obs, wanda"),
        ("nm", ["spread=2"], "n - spread is 1"),
    ],
)
def test_wrong_options_are_refused_in_one_line(name: str, settings: list[str], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        by_name.value(name, settings)


def test_a_pattern_that_does_not_fit_is_refused_by_name() -> None:
    shapes = {"model.layers.0.mlp.up_proj": (64, 64)}
    with pytest.raises(Refusal, match=r"up_proj: nm 2:5: 5 does not divide"):
        by_name.value("nm", ["n=2", "m=5"]).plan(dict.fromkeys(shapes, LayerSpec(4, 32)), shapes, [])
    with pytest.raises(Refusal, match="2-bit"):
        by_name.value("nm", ["score=ternary"]).plan(dict.fromkeys(shapes, LayerSpec(4, 32)), shapes, [])


def test_a_leaf_of_its_own_weight_says_so() -> None:
    rounded = to_grid(torch.randn(16, 32), LayerSpec(4, 16), "mse", None)
    assert "q.weight" in rounded.tensors("q", own=True) and "q.weight" not in rounded.tensors("q")
