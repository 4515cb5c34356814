# SPDX-License-Identifier: Apache-2.0
"""The weighted start: what is measured, the refit, what it is worth; records of starts; bf16 only where it is fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typer.testing import CliRunner

from dlqat import folded
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.grid import Grid, dequantize, quantize
from dlqat.recipe import BLOCKS, Recipe, Rule, portable
from dlqat.trainer import cli, compose, precision
from dlqat.trainer.calibrate import mean_squares
from dlqat.trainer.data.examples import Examples
from dlqat.trainer.layers.prepare import fixed, load, prepare, qat_layers
from dlqat.trainer.layers.qat import teacher
from dlqat.trainer.options import MAGNITUDE_RATES, Options
from dlqat.trainer.request import TrainRequest
from dlqat.trainer.rounding.search import COARSE, refit, search
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.start import Site
from dlqat.trainer.train import optimizer
from models import FAMILIES, tiny
from test_train_cli import base, call, kill_before_training  # noqa: F401  # base: a fixture

TEXT = torch.randint(3, 160, (6, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_squares_are_those_of_what_each_linear_reads(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fast_bf16", lambda device: False)
    model, wanted = tiny(family), dict[str, Tensor]()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n}
    for name, module in linears.items():
        module.register_forward_pre_hook(
            lambda _, args, name=name: wanted.update({name: args[0].flatten(0, -2).square().mean(0)})
        )
    with torch.no_grad():
        model(TEXT)
    whole = dict(wanted)
    found = mean_squares(model, TEXT)
    assert found.keys() == linears.keys()
    for name, square in found.items():
        torch.testing.assert_close(square, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grid", [Grid(4, 16), Grid(3, 16, mirrored=True), Grid(2, 16, symmetric=False), Grid(4, None)])
def test_a_refit_loses_less_and_keeps_scales_that_ship(grid: Grid) -> None:
    weight, importance = torch.randn(24, 64), torch.rand(64) ** 2

    def error(scales: Tensor, zero_points: Tensor | None) -> Tensor:
        made = dequantize(quantize(weight, scales, zero_points, grid), scales, zero_points)
        return (made - weight).square().mul(importance).view(*scales.shape, -1).sum(-1)

    found = search(weight, grid, importance)
    scales = refit(weight, found, grid, importance)
    coarse = search(weight, grid, importance, COARSE)
    short = error(refit(weight, coarse, grid, importance), coarse[1])
    assert float(short.sum()) < 1.03 * float(error(scales, found[1]).sum())
    before, after = error(*found), error(scales, found[1])
    assert torch.equal(grid.round_scales(scales), scales)
    assert bool((after <= before * (1 + 1e-5)).all()) and float(after.sum()) < 0.999 * float(before.sum())


def test_a_refit_of_codes_that_are_all_zero_keeps_its_scale() -> None:
    scales = torch.full((1, 1), 0.5)
    kept = refit(torch.zeros(1, 16), (scales, None), Grid(4, 16), torch.ones(16))
    assert torch.equal(kept, scales)
    assert torch.equal(refit(torch.randn(1, 16), (scales, None), Grid(4, 16), torch.zeros(16)), scales)


def test_the_weighted_start_is_nearer_to_the_float_model() -> None:
    recipe, lost = Recipe((*portable(3, 16, 0).rules, Rule(BLOCKS, {"rank": 4}))), dict[str, float]()
    for init in ("mse", "weighted"):
        model = tiny("llama-tied")
        with torch.no_grad():
            model.get_submodule("model.norm").weight.mul_(0.2)  # flat logits, whose error is that of the layers
            for layer in model.get_submodule(
                "model.layers"
            ).children():  # inputs of very different size, as of real models
                layer.get_submodule("input_layernorm").weight[::8] *= 8
                layer.get_submodule("post_attention_layernorm").weight[::8] *= 8
        by_name.parse(init).prepare(Site(model, recipe, text=lambda: TEXT))
        with torch.no_grad(), teacher(model):
            wanted = model(TEXT).logits
        with torch.no_grad():
            lost[init] = float((model(TEXT).logits - wanted).square().mean())
    assert lost["weighted"] < 0.9 * lost["mse"]


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("init", ["weighted", "gptq", "blocks"])
def test_a_head_of_few_bits_is_rounded_for_what_it_reads(family: str, init: str) -> None:
    """Nearer to the float model than least squares; a tied head has its embedding's integers; what the adapter file holds
    brings it back."""
    outer = Recipe(
        (Rule(r"model\.embed_tokens|lm_head", {"bits": 4, "group_size": 16, "rank": 0, "magnitude": False}),)
    )

    def made(name: str) -> tuple[PreTrainedModel, float]:
        """The model, and how far its head is from the float one's on the same inputs."""
        model = tiny(family)
        with torch.no_grad():
            model.get_submodule("model.norm").weight[::8] *= 20  # what a head reads is of very different size
            wanted = model(TEXT).logits
            by_name.parse(name).prepare(Site(model, outer, text=lambda: TEXT))
            with teacher(model):
                assert torch.equal(model(TEXT).logits, wanted)
                read = model.model(TEXT).last_hidden_state
            return model, float((model.get_submodule(HEAD)(read) - wanted).norm())

    (model, found), (_, plain) = made(init), made("mse")
    assert found < 0.8 * plain
    layers, again = qat_layers(model), tiny(family)
    dense = {name: folded.dense(layer.fold()) for name, layer in layers.items()}
    with torch.no_grad():
        rows = model.get_submodule(EMBEDDING)(torch.arange(160))
        assert torch.equal(rows, dense[EMBEDDING])
        again.get_submodule("model.norm").weight[::8] *= 20
        prepare(again, outer)
        load(again, fixed(model))
        assert torch.equal(again(TEXT).logits, model(TEXT).logits)


def test_a_head_of_eight_bits_stays_as_it_was() -> None:
    model = tiny("llama-tied")
    by_name.parse("weighted").prepare(Site(model, portable(4, 32, 0), text=lambda: TEXT))
    assert [name for name in fixed(model) if name.endswith("offset")] == []


def test_a_run_begun_before_starts_were_one_is_continued(base: Path) -> None:  # noqa: F811
    """dlqat.json as dlqat wrote it: the start among the options or as a method, and no newer option."""
    say = ("--calibration-tokens", "32")
    cases = {
        "mse": (("--init", "mse", "--block-distance", "0"), {"name": "dlqat"}, "mse"),
        "gptq": (("--init", "gptq", "--block-distance", "0", *say), {"name": "dlqat"}, "gptq"),
        "rtn": (("--method", "rtn", "--then", "dlqat", "--block-distance", "0"), {"name": "rtn"}, "mse"),
    }
    for name, (words, method, init) in cases.items():
        kill_before_training(base, *words, output=name)
        path = base.parent / name / "dlqat.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        del record["start"], record["options"]["block_distance"]
        record["options"] |= {"init": init, "calibration_tokens": 32 if name == "gptq" else 40960}
        path.write_text(json.dumps({**record, "method": method}), encoding="utf-8")
        call(base, *words, output=name)
        assert (base.parent / name / "adapters.safetensors").exists()


def test_less_text_than_a_sequence_will_do(base: Path) -> None:  # noqa: F811
    """The default start needs no more text than training does."""
    short = base.parent / "short.jsonl"
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    short.write_text(json.dumps({"messages": talk}) + "\n", encoding="utf-8")
    call(base, "--sequence-length", "128", data=str(short))


def test_auto_takes_bf16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "fast_bf16", lambda device, fast=fast: fast)
        assert precision.chosen("auto", "cpu") == chosen
        with precision.autocast("cpu"):
            assert torch.is_autocast_enabled("cpu") == fast
        assert [precision.chosen(said, "cpu") for said in ("bf16", "fp32")] == ["bf16", "fp32"]


def commands() -> list[str]:
    """The options of each kind of row in docs/methods.md that begins with --init."""
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = page.partition("| in the name | options |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    return [line.split("|")[2].strip().strip("`") for line in lines if "| `--" in line and "`, `" not in line]


@pytest.mark.parametrize("words", commands())
def test_the_rows_of_the_table_are_commands(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are understood, and something is trained unless they say that nothing is."""
    asked: list[TrainRequest] = []
    monkeypatch.setattr(compose, "run", lambda request, console: asked.append(request) or request.output)
    if not words.startswith("--recipe"):
        result = CliRunner().invoke(
            cli.app, ["model", "-o", "out", "-d", "valid.txt", "--no-activations", *words.split()]
        )
        assert result.exit_code == 0, result.output
        (request,) = asked
        assert (request.options.steps == 0) == ("--steps 0" in words)
        spec = request.recipe.spec("model.layers.0.mlp.up_proj")
        assert spec is not None and (spec.rank == 0) == ("--rank 0" in words or "--steps 0" in words)


def test_there_are_such_rows() -> None:
    assert len(commands()) > 10


def test_magnitudes_move_at_the_rate_of_their_layer() -> None:
    model = tiny("llama")
    prepare(model, Recipe((*portable(4, 16, 0).rules, Rule(r".*layers\.1.*up_proj", {"bits": 3, "mirrored": False}))))
    for given, wanted in ((None, {MAGNITUDE_RATES[4]: 13, MAGNITUDE_RATES[3]: 1}), (0.5, {0.5: 14})):
        groups = optimizer(model, Options(learning_rate=7.0, magnitude_rate=given)).param_groups
        assert {g["base"]: len(g["params"]) for g in groups if g["base"] != 7} == wanted


def test_the_first_of_plain_texts_are_plain_texts() -> None:
    """Benchmarks keep the end of a text unseen; it must not look like answers, which cross entropy would learn."""
    loss = torch.ones(12, dtype=torch.bool)
    loss[[0, 4, 8]] = False
    whole = Examples(torch.arange(12, dtype=torch.int32), loss, torch.tensor([0, 4, 8, 12]))
    part = whole.first(2)
    assert len(part) == 2 and not part.answers and len(part.ids) == 8
    assert all(torch.equal(a, b) for i in range(2) for a, b in zip(part.example(i), whole.example(i), strict=True))
