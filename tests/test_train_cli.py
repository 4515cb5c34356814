# SPDX-License-Identifier: Apache-2.0
"""dlqat-train as a user meets it: model_dir, folding, continuing, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from dlqat import checkpoint
from dlqat.exporters import cli as export_cli
from dlqat.exporters import fold
from dlqat.folded import dense
from dlqat.refusal import Refusal
from dlqat.trainer import cli, run
from models import tiny
from toy_tokenizer import toy_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer, as a Hugging Face folder."""
    tokenizer = toy_tokenizer()
    tiny("llama-tied", vocab_size=max(160, len(tokenizer))).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    return tmp_path / "base"


def call(base: Path, *extra: str, output: str = "out") -> None:
    """One dlqat-train of a few steps; a Refusal comes through."""
    data = str(base.parent / "text.txt")
    arguments = [str(base), "-o", str(base.parent / output), "--data", data, "--steps", "3", "--sequence-length", "16"]
    result = CliRunner().invoke(cli.app, [*arguments, "--rank", "4", "--precision", "fp32", *extra])
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0, result.output


def test_a_model_dir_holds_what_was_asked_for_and_folds_exactly(base: Path) -> None:
    call(base, "--bits", "3", "--group-size", "16", "--no-activations")
    out = base.parent / "out"
    assert not (out / "training").exists() and (out / "loss.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    record = json.loads((out / "dlqat.json").read_text(encoding="utf-8"))
    assert record["options"]["steps"] == 3 and record["source"] == str(base.resolve())
    assert fold.stale(out)
    folded = checkpoint.read(fold.fold(out))
    assert not fold.stale(out)
    layer = folded.layers["model.layers.0.mlp.up_proj"]
    reference = AutoModelForCausalLM.from_pretrained(out / "folded")
    reference(torch.tensor([[1]]))
    assert torch.equal(reference.get_submodule("model.layers.0.mlp.up_proj").weight, dense(layer))
    float_weight = AutoModelForCausalLM.from_pretrained(base).get_submodule("model.layers.0.mlp.up_proj").weight
    moved = (dense(layer) - float_weight.detach()).abs().max()
    assert 0 < float(moved) < float(float_weight.detach().abs().max())


def test_the_same_command_again_does_nothing_and_another_one_is_refused(base: Path) -> None:
    call(base)
    adapters = base.parent / "out" / "adapters.safetensors"
    before = adapters.stat().st_mtime_ns
    call(base)
    assert adapters.stat().st_mtime_ns == before
    with pytest.raises(Refusal, match="another options .seed 0, now 7"):
        call(base, "--seed", "7")
    with pytest.raises(Refusal, match="another recipe"):
        call(base, "--bits", "3")


class Killed(Exception):
    """Stands for the kill in the middle of a run."""


def kill_before_training(base: Path, *extra: str, output: str = "out") -> None:
    """One call that ends when the start is made and training would begin."""

    def stop(*arguments: object, **more: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run, "train", stop)
        call(base, *extra, output=output)


def test_a_killed_run_continues_from_its_prepared_start(base: Path) -> None:
    options = ("--init", "blocks", "--bits", "3", "--group-size", "16")
    call(base, *options)
    kill_before_training(base, *options, output="cut")
    made = base.parent / "cut" / "training" / "start.safetensors"
    assert any(name.endswith(".offset") for name in load_file(made))
    before = made.stat().st_mtime_ns
    kill_before_training(base, *options, output="cut")
    assert made.stat().st_mtime_ns == before
    call(base, *options, output="cut")
    whole, cut = (load_file(base.parent / name / "adapters.safetensors") for name in ("out", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "killed"])
def test_edited_data_is_refused(base: Path, finished: bool) -> None:
    (call if finished else kill_before_training)(base)
    with (base.parent / "text.txt").open("a", encoding="utf-8") as file:
        file.write("one more sentence.")
    with pytest.raises(Refusal, match=r"another data \(.*text\.txt"):
        call(base)


def test_another_tokenizer_is_refused(base: Path) -> None:
    kill_before_training(base)
    digest = base.parent / "out" / "training" / "examples.sha256"
    digest.write_text("0" * 16, encoding="utf-8")
    with pytest.raises(Refusal, match="other training examples"):
        call(base)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--bits", "5"], "bits = 5"),
        (["--group-size", "128"], "does not divide"),
        (["--init", "magic"], "not one of"),
        (["--kd", "0"], "not both 0"),
        (["--data", "nowhere.txt"], "does not exist"),
        (["--steps", "0"], "too small"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(base: Path, extra: list[str], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        call(base, *extra)
    assert not (base.parent / "out").exists()


def test_fold_refuses_a_changed_base_and_damaged_adapters(base: Path) -> None:
    call(base)
    out = base.parent / "out"
    adapters = load_file(out / "adapters.safetensors")
    for change, says in ((-1.0, "<= 0"), (float("nan"), "NaN")):
        name = next(n for n in adapters if n.endswith("magnitude"))
        save_file({**adapters, name: adapters[name] * change}, out / "adapters.safetensors")
        with pytest.raises(Refusal, match=says) as refusal:
            fold.fold(out)
        assert name in str(refusal.value)
    cut = {n: t for n, t in adapters.items() if not n.startswith("model.layers.1.mlp.up_proj")}
    save_file(cut, out / "adapters.safetensors")
    with pytest.raises(Refusal, match=r"model\.layers\.1\.mlp\.up_proj\.scales is missing"):
        fold.fold(out)
    save_file(adapters, out / "adapters.safetensors")
    weights = load_file(base / "model.safetensors")
    save_file({n: t * 1.01 for n, t in weights.items()}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match="is not the model that"):
        fold.fold(out)
    assert not (out / "folded").exists()


def test_a_base_that_has_moved_is_named_at_export(base: Path) -> None:
    call(base)
    moved = base.rename(base.parent / "moved")
    with pytest.raises(Refusal, match="does not exist"):
        fold.fold(base.parent / "out")
    folder = export_cli.fold_if_needed(base.parent / "out", str(moved))
    assert checkpoint.read(folder).layers
