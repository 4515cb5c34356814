# SPDX-License-Identifier: Apache-2.0
"""A base of one byte a weight: what it holds, that folding stays exact, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dlqat import recipe
from dlqat.adapter import Adapter, base, fixed_point, fold
from dlqat.exporters import fold as exporters_fold
from dlqat.folded import dense, disk
from dlqat.grid import Grid
from dlqat.recipe import BLOCKS, LayerSpec, Recipe, Rule
from dlqat.refusal import Refusal
from dlqat.trainer import cli, course
from dlqat.trainer.layers.qat import QATLinear, teacher
from dlqat.trainer.rounding.search import search
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.start import Site
from models import tiny
from toy_tokenizer import toy_tokenizer


@pytest.mark.parametrize("grid", [Grid(2, 16), Grid(3, 32, symmetric=False), Grid(4, None), Grid(4, 16)], ids=str)
def test_the_base_is_within_half_its_unit_and_folding_is_exact(grid: Grid) -> None:
    linear = nn.Linear(64, 24)
    group = grid.group_size or 0
    spec = LayerSpec(grid.bits, group, grid.symmetric, rank=4, base_bits=8)
    scales, zero_points = search(linear.weight.detach(), grid)
    m = QATLinear(linear, spec, scales, zero_points)
    nn.init.normal_(m.lora_b, std=0.01)  # pyright: ignore[reportArgumentType]
    weight = linear.weight.detach().clone()
    m.shrink_base()
    assert m.weight.dtype == torch.int8
    kept = base(m.weight, m.adapter())
    unit = scales.repeat_interleave(64 // scales.shape[1], 1) * 2.0 ** (grid.bits - 7)
    reach = weight.abs() < 127 * unit  # twice the grid's range; nothing of a normal weight lies beyond
    assert bool(reach.float().mean() > 0.99)
    assert bool(((kept - weight).abs() <= unit / 2 * 1.001)[reach].all())
    # Law 2, and the way of dlqat.exporters.fold: from the float weights once more.
    assert torch.equal(dense(m.fold()), m.made(torch.float32))
    again = fold(fixed_point(weight, m.scales, grid), m.adapter())
    assert torch.equal(again.codes, m.fold().codes)
    x = torch.randn(3, 64)
    m(x).square().sum().backward()
    assert m.lora_a is not None and m.lora_a.grad is not None and bool(m.lora_a.grad.abs().sum() > 0)
    with teacher(m):
        torch.testing.assert_close(m(x), x @ kept.T + m.bias)


@pytest.mark.parametrize("grid", [Grid(2, 32), Grid(3, 32, mirrored=True), Grid(4, 32)], ids=str)
def test_the_shrunk_base_has_the_codes_of_the_weight_and_lies_away_from_ties(grid: Grid) -> None:
    """A unit's middle is on its weight's side of every tie, half a unit from the next: small updates move no code."""
    weight = torch.randn(32, 256) * 0.02
    scales, zero_points = search(weight, grid)
    adapter = Adapter(grid, scales, zero_points)
    shrunk = fixed_point(weight, scales, grid)
    assert torch.equal(fold(shrunk, adapter).codes, fold(weight, adapter).codes)
    steps = (base(shrunk, adapter).view(32, 8, 32) / scales[..., None]).double()
    assert float((steps - steps.floor() - 0.5).abs().min()) >= 2.0 ** (grid.bits - 8) * (1 - 1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"base_bits": 4}, "is not 0 or 8"),
        ({"base_bits": 8, "bits": 8}, "needs a grid of 2, 3 or 4 bits"),
        ({"base_bits": 8, "magnitude": False, "train_scales": True}, "cannot be trained"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(changes: dict[str, object], reason: str) -> None:
    rules = Recipe((Rule(BLOCKS, changes),))
    with pytest.raises(Refusal, match=f"model.layers.0.mlp.up_proj: .*{reason}"):
        rules.layers({"model.layers.0.mlp.up_proj": (64, 64)})
    assert recipe.parse(recipe.tables(rules), "here") == rules


@pytest.mark.parametrize(("init", "bits"), [("gptq", 2), ("gptq", 4), ("blocks", 3)])
def test_a_prepared_start_keeps_its_codes_on_the_shrunk_base(init: str, bits: int) -> None:
    tokens = torch.randint(3, 160, (8, 16), generator=torch.Generator().manual_seed(1))
    found: list[dict[str, torch.Tensor]] = []
    for kept in (0, 8):
        model = tiny("llama-tied")
        recipe = Recipe((Rule(BLOCKS, {"bits": bits, "group_size": 16, "rank": 4, "base_bits": kept}),))
        by_name.parse(init).prepare(Site(model, recipe, text=lambda: tokens))
        layers = {name: m for name, m in model.named_modules() if isinstance(m, QATLinear)}
        for layer in layers.values():
            layer.shrink_base()
            assert (layer.weight.dtype == torch.int8) == bool(kept)
        found.append({name: layer.fold().codes for name, layer in layers.items()})
    assert all(torch.equal(found[1][name], codes) for name, codes in found[0].items())


def road(folder: Path) -> None:
    """A tiny model with a tokenizer, and a text beside it."""
    tokenizer = toy_tokenizer()
    tiny("llama-tied", vocab_size=max(160, len(tokenizer))).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")


def test_a_method_makes_the_same_codes_on_the_shrunk_base(tmp_path: Path) -> None:
    road(tmp_path)
    (tmp_path / "recipe.toml").write_text(f"[[rule]]\nmatch = '{BLOCKS}'\nbase_bits = 8\n", encoding="utf-8")
    words = [tmp_path / "base", "-d", tmp_path / "text.txt", "--method", "gptq", "--sequence-length", 16]
    made: list[torch.Tensor] = []
    for name, extra in (("float", []), ("shrunk", ["--recipe", tmp_path / "recipe.toml"])):
        asked = [str(a) for a in [*words, "-o", tmp_path / name, "--precision", "fp32", *extra]]
        result = CliRunner().invoke(cli.app, asked, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        folded = disk.read(exporters_fold.fold(tmp_path / name))
        made.append(dense(folded.layers["model.layers.0.mlp.up_proj"]))
    assert torch.equal(*made)


def test_what_folds_from_the_float_weights_is_what_training_multiplied_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    road(tmp_path)
    seen: list[nn.Module] = []
    train = course.train
    monkeypatch.setattr(course, "train", lambda model, *rest, **more: seen.append(model) or train(model, *rest, **more))
    arguments = [tmp_path / "base", "-o", tmp_path / "out", "-d", tmp_path / "text.txt", "--steps", 3, "--rank", 4]
    options = ["--sequence-length", 16, "--precision", "fp32", "--base-bits", 8, "--bits", 3, "--group-size", 16]
    result = CliRunner().invoke(cli.app, [str(a) for a in [*arguments, *options]], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    name = "model.layers.0.mlp.up_proj"
    layer = seen[0].get_submodule(name)
    assert isinstance(layer, QATLinear) and layer.weight.dtype == torch.int8
    folded = disk.read(exporters_fold.fold(tmp_path / "out"))
    assert torch.equal(dense(folded.layers[name]), layer.made(torch.float32))
