# SPDX-License-Identifier: Apache-2.0
"""L0 on real exports: law 4 for every grid, family and kind of layer, and a negative control for every kind of lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import artifacts
import models
from dlqat import artifact as folders
from dlqat.folded import disk
from dlqat.grid import Grid
from dlqat.recipe import Recipe, Rule
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import controls, integers
from dlqat.runtime_tests.check.integers import Integrity
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.check.rungs.l0_integers import files, reference_equal

GRIDS = [
    Grid(bits, group, symmetric) for bits in (2, 3, 4, 5, 8) for group in (32, None) for symmetric in (True, False)
]
FORMS = (*artifacts.FORMS, "web")
DOWN, OUT = "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.o_proj"


def compare(artifact: Path, reference: Path) -> Integrity:
    program = folders.find(artifact).program
    return integers.compare(readers.read(program), integers.wanted(disk.read(reference)))


def told(artifact: Path, reference: Path) -> list[str]:
    return [str(d) for d in compare(artifact, reference).differences]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids(tmp_path: Path, grid: Grid, form: str) -> None:
    """Law 4: every code, scale and zero-point, whatever the grid."""
    fields = {"bits": grid.bits, "group_size": grid.group_size or 0, "symmetric": grid.symmetric}
    artifact = artifacts.export(tmp_path, form, "llama", Recipe((Rule(".*", fields),)))
    result = compare(artifact, tmp_path / "folded")
    assert result.differences == ()
    assert result.codes == 2 * 160 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert (result.zero_points > 0) == (not grid.symmetric)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_families(tmp_path: Path, family: str, form: str) -> None:
    """Biases, head norms and tied heads of all families."""
    artifact = artifacts.export(tmp_path, form, family)
    result = compare(artifact, tmp_path / "folded")
    model = disk.read(tmp_path / "folded")
    assert result.differences == ()
    assert result.floats == sum(model.tensors[n].numel() for n in model.tensors)


@pytest.mark.parametrize("form", FORMS)
def test_unions(tmp_path: Path, form: str) -> None:
    """Low-rank, clustered and summed layers: every leaf, every label."""
    artifact = artifacts.export_union(tmp_path, form)
    result = compare(artifact, tmp_path / "folded")
    assert result.differences == ()
    assert result.labels > 0


@pytest.mark.parametrize("form", FORMS)
def test_layers_without_a_rule(tmp_path: Path, form: str) -> None:
    """Float linears and embeddings are compared as numbers."""
    artifact = artifacts.export(tmp_path, form, "llama-tied", Recipe((Rule(".*up_proj", {"bits": 4}),)))
    assert compare(artifact, tmp_path / "folded").differences == ()


@pytest.mark.parametrize("form", FORMS)
def test_changed_bits_are_named(tmp_path: Path, form: str) -> None:
    """Negative control (law 7): one bit of a code, a scale, a zero-point."""
    fields = {"bits": 4, "group_size": 16, "symmetric": False}
    artifact = artifacts.export(tmp_path, form, "llama", Recipe((Rule(".*", fields),)))
    found, want = folders.find(artifact), integers.wanted(disk.read(tmp_path / "folded"))
    before = (artifact / "onnx" / "model.onnx_data").read_bytes()
    noticed = list(controls.check_integers(found, readers.read(found.program), want))
    assert [c.what.split()[-1] for c in noticed] == ["codes", "scales", "zero-points"]
    assert all(c.answer and "model.layers.1.mlp.down_proj" in c.answer and "1 of" in c.answer for c in noticed)
    assert (artifact / "onnx" / "model.onnx_data").read_bytes() == before, "the artifact itself must not change"
    assert not list(tmp_path.glob(".dlqat-check-*")), "damaged copies must not stay"


@pytest.mark.parametrize("what", ["codes", "scales", "labels"])
def test_every_tensor_is_looked_at(tmp_path: Path, what: str) -> None:
    """Flip the first bit of each stored tensor in turn: L0 names that tensor and no other."""
    artifact = artifacts.export_union(tmp_path, "qdq")
    found, want = folders.find(artifact), integers.wanted(disk.read(tmp_path / "folded"))
    model = onnx.load(str(found.program))
    tensors = [t for t in model.graph.initializer if t.name.endswith(f".{what}")]
    assert len(tensors) > 4
    for tensor in tensors:
        original = tensor.raw_data
        tensor.raw_data = bytes([original[0] ^ 1]) + original[1:]
        path = tmp_path / "one.onnx"
        onnx.save(model, str(path))
        tensor.raw_data = original
        names = {d.name for d in integers.compare(readers.read(path), want).differences}
        assert names == {tensor.name if what == "labels" else tensor.name.rpartition(".")[0]}


Edit = Callable[[Any], None]


def named(items: Any, name: str) -> Any:
    return next(x for x in items if x.name == name)


def replace_input(model: Any, old: str, new: str) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = new if name == old else name


def swap_weights(model: Any) -> None:
    """o_proj of block 0 multiplies block 1's bytes and the other way round; every name stays."""
    a, b = (named(model.graph.node, f"model.layers.{i}.self_attn.o_proj/DequantizeLinear") for i in (0, 1))
    a.input[0], b.input[0] = b.input[0], a.input[0]


def twin_bytes(model: Any) -> None:
    """The tensor that the name promises stays in the file; down_proj uses a changed copy."""
    copy = model.graph.initializer.add()
    copy.CopyFrom(named(model.graph.initializer, f"{DOWN}.codes"))
    copy.name, copy.raw_data = "other", bytes([copy.raw_data[0] ^ 0x10]) + copy.raw_data[1:]
    named(model.graph.node, f"{DOWN}/DequantizeLinear").input[0] = "other"


def lose_linear(model: Any) -> None:
    """The output of down_proj is replaced by o_proj's: nothing multiplies with down_proj any more."""
    replace_input(model, f"{DOWN}/Add:y", f"{OUT}/Add:y")


def change_norm(model: Any) -> None:
    """One norm weight by the last bit."""
    norm = named(model.graph.initializer, "model.norm.weight")
    norm.raw_data = bytes([norm.raw_data[0] ^ 1]) + norm.raw_data[1:]


def minus_zero(model: Any) -> None:
    """0.0 becomes -0.0 in a bias."""
    bias = named(model.graph.initializer, f"{DOWN}.bias")
    bias.raw_data = bytes(3) + b"\x80" + bias.raw_data[4:]


def lose_bias(model: Any) -> None:
    """down_proj's bias is stored and unused."""
    replace_input(model, f"{DOWN}/Add:y", f"{DOWN}/MatMul:y")


def dequantized(model: Any) -> None:
    """down_proj multiplies a float copy of its weight."""
    node = named(model.graph.node, f"{DOWN}/MatMul")
    weight = model.graph.initializer.add()
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ones((128, 64), np.float32), f"{DOWN}.weight"))
    node.input[1] = weight.name


LIES: dict[str, tuple[Edit, str]] = {
    "swapped": (swap_weights, f"{OUT}: "),
    "twin bytes": (twin_bytes, "1 of 8192 codes differ"),
    "lost linear": (lose_linear, "down_proj: missing: nothing in the artifact multiplies with it"),
    "norm": (change_norm, "model.norm.weight: 1 of 64 numbers differ"),
    "minus zero": (minus_zero, "down_proj.bias: 1 of 64 numbers differ"),
    "lost bias": (lose_bias, "down_proj.bias: missing"),
    "dequantized": (dequantized, "down_proj: missing: nothing in the artifact multiplies with it"),
}


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qdq artifact and its folded/, the first number of down_proj's bias being 0."""
    folder = tmp_path_factory.mktemp("biased")
    model = models.fold_model(models.tiny("llama-biased"))
    model.tensors[f"{DOWN}.bias"][0] = 0
    artifacts.export_model(folder, "qdq", model)
    return folder


@pytest.mark.parametrize("lie", LIES)
def test_lies(biased: Path, tmp_path: Path, lie: str) -> None:
    """Graphs that run and multiply something else than their names say."""
    edit, says = LIES[lie]
    program = folders.find(biased / "qdq").program
    want = integers.wanted(disk.read(biased / "folded"))
    assert integers.compare(readers.read(program), want).differences == ()
    model = onnx.load(str(program))
    edit(model)
    path = tmp_path / "lie.onnx"
    onnx.save(model, str(path))
    lines = [str(d) for d in integers.compare(readers.read(path), want).differences]
    assert any(says in line for line in lines), lines


def test_another_models_integers(tmp_path: Path) -> None:
    """Every tensor of a model with other weights differs, the worst first; one with other layers has surplus ones."""
    artifact = artifacts.export(tmp_path / "a", "ort")
    artifacts.export(tmp_path / "b", "ort", seed=1)
    artifacts.export(tmp_path / "c", "ort", num_hidden_layers=1)
    lines = told(artifact, tmp_path / "b" / "folded")
    assert sum(" codes differ" in line for line in lines) == 16  # one embedding, a head, 14 linears
    lines = told(artifact, tmp_path / "c" / "folded")
    assert any("layers.1.mlp.down_proj: multiplies, but folded/ has no" in line for line in lines)
    lines = told(tmp_path / "c" / "ort", tmp_path / "a" / "folded")
    assert any("layers.1.mlp.down_proj: missing" in line for line in lines)


def test_other_groups(tmp_path: Path) -> None:
    """The same codes under scales of another group size are another weight."""
    recipe = {g: Recipe((Rule(".*", {"bits": 4, "group_size": g}),)) for g in (32, 16)}
    artifact = artifacts.export(tmp_path / "a", "qdq", recipe=recipe[32])
    artifacts.export(tmp_path / "b", "qdq", recipe=recipe[16])
    assert any("has scales 2 per row, for 32 inputs each" in line for line in told(artifact, tmp_path / "b" / "folded"))


@pytest.mark.parametrize("form", ["qdq", "xnnpack"])
def test_a_tokenizer_that_changed_after_the_export_is_told(tmp_path: Path, form: str) -> None:
    """The artifact has its own copy, and an app would go on with the old one."""
    artifact = artifacts.export(tmp_path, form)
    (good,) = files(artifacts.proof(artifact, tmp_path / "folded"))
    assert good.status == "passed"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        path = tmp_path / "folded" / name
        before = path.read_text()
        path.write_text(before + " ")
        (bad,) = files(artifacts.proof(artifact, tmp_path / "folded"))
        assert bad.status == "not verified"
        assert f"made from another folded/ ({name} differs)" in bad.summary
        path.write_text(before)


def test_reference_is_checked_too(tmp_path: Path) -> None:
    """Law 3 on the folder at hand: transformers multiplies with what the integers mean, and a wrong weight is told."""
    artifact = artifacts.export(tmp_path, "ort")
    proof: Proof = artifacts.proof(artifact, tmp_path / "folded")
    (good,) = reference_equal(proof)
    with torch.inference_mode(), proof.reference.weight(DOWN) as weight:
        weight[0, 0] += 1
    (bad,) = reference_equal(proof)
    assert (good.status, bad.status) == ("passed", "failed")
    assert bad.summary.startswith(DOWN)
