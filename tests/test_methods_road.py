# SPDX-License-Identifier: Apache-2.0
"""Every compression method from dlqat-train to a proved artifact, alone and with DL-QAT after it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import artifacts
from dlqat import folded, plan
from dlqat.artifact import find
from dlqat.devices.all import device
from dlqat.exporters import fold, pipeline
from dlqat.exporters.onnx import target as onnx_target
from dlqat.folded import Clustered, LowRank, Quantized, Sum, disk
from dlqat.recipe import parse
from dlqat.refusal import Refusal
from dlqat.runtime_tests.check import ladder
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.reference.model import Reference
from dlqat.trainer import cli, log
from dlqat.trainer.layers.prepare import load, qat_layers
from dlqat.trainer.layers.qat import teacher
from dlqat.trainer.methods.nm import holds
from dlqat.trainer.starts.restore import restore
from toy_tokenizer import write_base

UP, QUERY = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"
CASES: dict[str, list[str]] = {
    "rtn": ["--method", "rtn"],
    "gptq": ["--method", "gptq", "--asymmetric", "--no-activations"],
    "weighted": ["--init", "weighted", "--steps", "0"],
    "blocks": ["--init", "blocks", "--bits", "2", "--then", "nothing"],
    "swsc": ["--method", "swsc"],
    "casp": ["--method", "casp", "--bits", "3"],
    "nm": ["--method", "nm", "--set", "low_rank=0.25"],
    "ternary": ["--method", "nm", "--set", "score=ternary", "--set", "n=4", "--set", "m=8", "--bits", "2"],
    "spread": ["--method", "nm", "--set", "n=4", "--set", "m=8", "--set", "spread=1"],
    "gptq+dlqat": ["--method", "gptq", "--bits", "3", "--then", "dlqat"],
    "ternary+dlqat": [
        *("--method", "nm", "--set", "score=ternary", "--set", "n=4", "--set", "m=8", "--bits", "2", "--then", "dlqat")
    ],
    "swsc+dlqat": ["--method", "swsc", "--set", "rounding=gptq", "--then", "dlqat"],
    "casp+dlqat": ["--init", "casp"],
    "nm+dlqat": ["--method", "nm", "--set", "low_rank=0.25", "--then", "dlqat"],
}
KINDS = {"swsc": Sum, "casp": LowRank, "nm": Sum}

Road = Callable[[str], Path]


def call(model: Path, output: Path, *extra: str, data: bool = True) -> None:
    text = ["--data", str(model.parent / "text.txt")] if data else []
    words = [str(model), "-o", str(output), *text, "--sequence-length", "16", "--precision", "fp32", *extra]
    steps = [] if "--steps" in extra else ["--steps", "3"]
    result = CliRunner().invoke(cli.app, [*words, *steps, "--rank", "4", "--lr", "0.03"])
    if result.exception is not None:
        raise result.exception


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """model_dir of a case, folded, trained once."""
    folder = tmp_path_factory.mktemp("methods")
    model = write_base(folder)

    @cache
    def made(case: str) -> Path:
        output = folder / case.replace("+", "-")
        call(model, output, *CASES[case])
        fold.fold(output)
        return output

    return made


@pytest.mark.parametrize("case", CASES)
def test_the_integers_are_those_of_the_training_forward(road: Road, case: str) -> None:
    """Laws 2 and 3: each leaf of folded/ is what its layer multiplies with, and transformers loads dense()."""
    out = road(case)
    model = disk.read(out / "folded")
    rebuilt = AutoModelForCausalLM.from_pretrained(out.parent / "base")
    rules = parse(json.loads((out / "dlqat.json").read_text())["recipe"], "test")
    tensors = load_file(out / "adapters.safetensors")
    assert (out / "plan.json").exists() == ("gptq" not in case and case not in ("rtn", "blocks", "weighted"))
    restore(rebuilt, rules, plan.read(out) if (out / "plan.json").exists() else {}, tensors)
    load(rebuilt, tensors)
    leaves = {path: leaf for name, layer in model.layers.items() for path, leaf in folded.leaves(layer, name)}
    layers = qat_layers(rebuilt)
    assert set(leaves) == set(layers)
    for path, leaf in leaves.items():
        own = layers[path]
        weight = folded.dense(own.fold()) if path.endswith("embed_tokens") else own.made(torch.float32)
        assert torch.equal(weight, folded.dense(leaf)), path
    reference = AutoModelForCausalLM.from_pretrained(out / "folded")
    reference(torch.tensor([[1]]))
    for name in (UP, QUERY):
        assert torch.equal(reference.get_submodule(name).weight, folded.dense(model.layers[name]))
    ids = torch.tensor([[1, 5, 9, 33]])
    with torch.no_grad(), teacher(rebuilt):
        assert torch.equal(rebuilt(ids).logits, AutoModelForCausalLM.from_pretrained(out.parent / "base")(ids).logits)


@pytest.mark.parametrize("case", CASES)
def test_the_artifact_holds_them_and_computes_with_them(road: Road, case: str, tmp_path: Path) -> None:
    """Law 4 and parity (L0, L2) of each method's union; a factor or code changed in folded/ fails it by name."""
    out = road(case)
    model = disk.read(out / "folded")
    pipeline.write(onnx_target, model, out / "folded", tmp_path / "onnx", onnx_target.Options(128, "qdq"))
    assert {c.status for c in artifacts.checks(tmp_path / "onnx", out / "folded", "L0", "L2")} == {"passed"}
    if case not in ("swsc", "casp", "nm"):
        return
    path, leaf = list(folded.leaves(model.layers[QUERY], QUERY))[-1]
    stored = load_file(out / "folded" / "integers.safetensors")
    packed = stored[f"{path}.weight_packed"]
    changed = {**stored, f"{path}.weight_packed": packed ^ (torch.arange(packed.numel()).view_as(packed) == 0).int()}
    copy = tmp_path / "changed"
    disk.write(model, copy, files=out / "folded")
    save_file(changed, copy / "integers.safetensors")
    failed = artifacts.checks(tmp_path / "onnx", copy, "L0")
    assert any(c.status == "failed" and path in str(c) for c in failed), (path, leaf.grid)


@pytest.mark.parametrize(("target", "form"), [("onnx", "ort"), ("onnx", "web"), ("executorch", None), ("coreml", None)])
@pytest.mark.parametrize("case", ["swsc", "casp", "nm"])
def test_every_target_takes_the_whole_union(
    road: Road, case: str, target: str, form: str | None, tmp_path: Path
) -> None:
    module = pipeline.load(target)
    folder = road(case) / "folded"
    model = disk.read(folder)
    options = pipeline.choose(module, target, model.config, 128, {"form": form})
    assert [row.refused for row in module.plan(model, folder, options) if row.refused] == []
    pipeline.write(module, model, folder, tmp_path / target, options)
    artifact = find(tmp_path / target)
    proof = Proof(artifact, Reference(folder), device(None, artifact.format), 1, quick=True, progress=lambda _: None)
    failed = [str(c) for c in ladder.run(proof, ("L0", "L2")) if c.status == "failed"]
    assert failed == []
    assert any(c.status == "passed" for c in ladder.run(proof, ("L0",)))
    assert ("zeros" in proof.facts) == (case == "nm")
    if case == "nm":  # the report says what they bring
        assert ("as a mask" if target == "coreml" else "no smaller and no faster") in proof.facts["zeros"]


@pytest.mark.parametrize("case", ["swsc", "casp", "nm"])
def test_what_a_method_makes_of_a_layer(road: Road, case: str) -> None:
    plain, trained = (disk.read(road(c) / "folded") for c in (case, f"{case}+dlqat"))
    for model in (plain, trained):
        layer = model.layers[QUERY]
        assert isinstance(layer, KINDS[case])
    if case == "swsc":
        layer = plain.layers[QUERY]
        assert isinstance(layer, Sum) and isinstance(layer.parts[0], Clustered)
        assert isinstance(plain.layers[UP], Quantized)
    for case_then in (f"{case}+dlqat",):  # factors and centroids are trained like any other layer
        tensors = load_file(road(case_then) / "adapters.safetensors")
        moved = [n for n, t in tensors.items() if n.startswith(QUERY) and n.endswith("lora_b") and bool(t.any())]
        assert len(moved) == len(list(folded.leaves(trained.layers[QUERY])))


@pytest.mark.parametrize(
    ("case", "n", "m"), [("nm", 2, 4), ("nm+dlqat", 2, 4), ("ternary", 4, 8), ("ternary+dlqat", 4, 8)]
)
def test_zeros_stay_zeros(road: Road, case: str, n: int, m: int) -> None:
    model = disk.read(road(case) / "folded")
    for name in (UP, QUERY):
        layer = model.layers[name]
        pruned = layer.parts[0] if isinstance(layer, Sum) else layer
        assert isinstance(pruned, Quantized)
        assert holds(folded.dense(pruned) != 0, n, m)
        if case == "ternary":
            assert set(pruned.codes.unique().tolist()) == {-1, 0, 1}


def test_a_run_that_was_stopped_goes_on_to_the_same_adapters(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(road("swsc+dlqat") / "adapters.safetensors")
    model, out = road("swsc+dlqat").parent / "base", tmp_path / "cut"
    write = log.Log.__call__

    def stop(self: log.Log, row: log.StepRow) -> None:
        write(self, row)
        if row.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "__call__", stop)
        with pytest.raises(SystemExit):
            call(model, out, *CASES["swsc+dlqat"], "--save-every", "1")
    assert (out / "training" / "state.safetensors").exists() and not (out / "adapters.safetensors").exists()
    call(model, out, *CASES["swsc+dlqat"], "--save-every", "1")
    cut = load_file(out / "adapters.safetensors")
    assert set(cut) == set(whole) and all(torch.equal(cut[name], whole[name]) for name in whole)


def test_the_record_says_the_method_and_another_one_is_refused(road: Road) -> None:
    out = road("casp")
    record = json.loads((out / "dlqat.json").read_text())
    assert record["start"] == {
        "name": "casp",
        "keep": 0.25,
        "average": 0.0,
        "choices": "2,3,4",
        "factor_bits": 4,
        "layers": r".*\.(q|k)_proj",
    }
    call(out.parent / "base", out, *CASES["casp"])  # the same: nothing to do
    with pytest.raises(Refusal, match=r"another start .keep 0.25, now 0.5"):
        call(out.parent / "base", out, *CASES["casp"], "--set", "keep=0.5")


@pytest.mark.parametrize(
    ("extra", "data", "says"),
    [
        (["--method", "magic"], True, "--method magic is not one of mse, "),
        (["--method", "gptq"], False, "--data is missing: calibration"),
        (["--method", "rtn", "--then", "dlqat"], False, "--data is missing: training"),
        ([], False, "--data is missing: training"),
        (["--then", "dlqat", "--steps", "0"], True, "--steps 0 does not"),
        (["--method", "rtn", "--then", "gptq"], True, "is not dlqat or nothing"),
        (["--method", "rtn", "--init", "gptq"], True, "both name the start"),
        (["--init", "weighted", "--steps", "0"], False, "--data is missing: calibration"),
        (["--set", "keep=1"], True, "weighted has no options"),
        (["--method", "casp", "--set", "average=1"], True, "raise --bits"),
        (["--method", "nm", "--set", "m=5"], True, "5 does not divide"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    tmp_path: Path, extra: list[str], data: bool, says: str
) -> None:
    model = write_base(tmp_path)
    with pytest.raises(Refusal, match=says):
        call(model, tmp_path / "out", *extra, data=data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [[], ["--data", "self"]])
def test_rounding_to_nearest_needs_no_data(tmp_path: Path, extra: list[str]) -> None:
    """And looks at none."""
    call(write_base(tmp_path), tmp_path / "out", "--method", "rtn", *extra, data=False)
    assert disk.read(fold.fold(tmp_path / "out")).layers


@pytest.mark.parametrize(("case", "lost"), [("casp", "left.weight"), ("nm", "0.mask")])
def test_a_lost_part_is_named(road: Road, case: str, lost: str, tmp_path: Path) -> None:
    """A factor; a mask, without which the pruned weights would come back."""
    out = road(case)
    for name in ("dlqat.json", "plan.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    tensors = load_file(out / "adapters.safetensors")
    save_file({n: t for n, t in tensors.items() if n != f"{QUERY}.{lost}"}, tmp_path / "adapters.safetensors")
    with pytest.raises(Refusal, match=re.escape(f"q_proj.{lost} is missing")):
        fold.fold(tmp_path)
