# SPDX-License-Identifier: Apache-2.0
"""The reader of Core ML packages: what it says of damaged ones, and that its small programs compute the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coreml_runs
import models
from dlqat.devices.device import Setting
from dlqat.devices.host.coreml_reference import CoremlReference
from dlqat.folded.disk import FoldedModel
from dlqat.grid import dequantize
from dlqat.mil.program import Package
from dlqat.recipe import Recipe, Rule
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import integers
from dlqat.runtime_tests.readers.contents import Unreadable

WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
PROGRAM = Path("Data/com.apple.CoreML/model.mlmodel")


@pytest.fixture(scope="module")
def model() -> FoldedModel:
    """One layer; 3-bit with zero-points, 4-bit with and without, an int8 embedding and head."""
    rules = (
        Rule(".*_proj", {"group_size": 32}),
        Rule(".*up_proj", {"bits": 3, "symmetric": False, "group_size": 64}),
        Rule(".*k_proj", {"symmetric": False}),
        Rule("model.embed_tokens|lm_head", {"bits": 8, "group_size": 0}),
    )
    return models.fold_model(models.tiny("llama", num_hidden_layers=1), Recipe(rules))


@pytest.fixture(scope="module")
def package(model: FoldedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coreml_runs.write(model, tmp_path_factory.mktemp("package"))


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    shutil.copytree(package, tmp_path / "model.mlpackage")
    return tmp_path / "model.mlpackage"


def differences(package: Path, model: FoldedModel) -> list[str]:
    return [str(d) for d in integers.compare(readers.read(package), integers.wanted(model)).differences]


def change_bytes(file: Path, change: Callable[[bytearray], Any]) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)


def change_operation(package: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Apply `change` to the message of the operation of that name, in the saved program."""
    opened = Package(package)
    found = next(o for o in opened.function().operations if o.name == name)
    change(found.message)
    (package / PROGRAM).write_bytes(opened.model.SerializeToString())


def test_an_undamaged_package(package: Path, model: FoldedModel) -> None:
    assert differences(package, model) == []


@pytest.mark.parametrize("what", ["codes", "scales", "zero_points"])
@pytest.mark.parametrize("name", ["self_attn.k_proj", "mlp.up_proj", "mlp.gate_proj"])
def test_one_bit_is_named(what: str, name: str, copy: Path, model: FoldedModel) -> None:
    path = f"model.layers.0.{name}"
    span = next(w for w in readers.read(copy).weights if w.name == path).spans.get(what)
    if span is None:
        assert what == "zero_points"
        assert name != "self_attn.k_proj"
        return

    def flip(content: bytearray) -> None:
        content[span.offset] ^= 1

    change_bytes(copy / WEIGHTS, flip)
    found = differences(copy, model)
    assert len(found) == 1
    assert found[0].startswith(f"{path}: 1 of")
    assert what.replace("_", "-") in found[0]


def test_a_table_that_is_bent(copy: Path, model: FoldedModel) -> None:
    """3 bits below iOS26: the zero-points are in a table per group, which must rise by 1."""
    parts = Package(copy).function().producer["model__layers__0__mlp__up_proj__weight_table"]
    blob = parts.inputs["data"][0].blob
    change_bytes(copy / WEIGHTS, lambda content: content.__setitem__(blob.start + 5, content[blob.start + 5] ^ 1))
    assert any("does not rise by 1" in d for d in differences(copy, model))


def test_swapped_weights_are_found(copy: Path, model: FoldedModel) -> None:
    """gate_proj multiplies with up_proj's neighbour: names do not help, values count."""

    def redirect(message: Any) -> None:
        entry = next(e for e in message.inputs if e.key == "weight")
        entry.value.arguments[0].name = "model__layers__0__self_attn__q_proj__weight"

    change_operation(copy, "model__layers__0__self_attn__o_proj", redirect)
    found = differences(copy, model)
    assert any("model.layers.0.self_attn.o_proj" in d and "codes differ" in d for d in found)
    assert any("tensors that nothing uses" in d for d in found)


def test_a_renamed_layer_is_missing_and_too_much(copy: Path, model: FoldedModel) -> None:
    def rename(message: Any) -> None:
        entry = next(e for e in message.attributes if e.key == "name")
        entry.value.immediateValue.tensor.strings.values[0] = "model__layers__7__mlp__up_proj"

    change_operation(copy, "model__layers__0__mlp__up_proj", rename)
    found = differences(copy, model)
    assert any("folded/ has no model.layers.7.mlp.up_proj" in d for d in found)
    assert any("model.layers.0.mlp.up_proj: missing" in d for d in found)


def test_a_weight_used_in_an_unknown_way(copy: Path, model: FoldedModel) -> None:
    def other(message: Any) -> None:
        message.type = "matmul"
        next(e for e in message.inputs if e.key == "weight").key = "y"

    change_operation(copy, "model__layers__0__mlp__down_proj", other)
    assert any("matmul uses it as" in d for d in differences(copy, model))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: (p / "Manifest.json").unlink(), "Manifest.json"),
        (lambda p: (p / "Manifest.json").write_text("{}"), "Manifest.json"),
        (lambda p: (p / PROGRAM).unlink(), "does not exist"),
        (lambda p: (p / PROGRAM).write_bytes(b"\xff\xff\xff"), "no Core ML model"),
        (lambda p: (p / PROGRAM).write_bytes(b""), "no ML program"),
        (lambda p: (p / WEIGHTS).unlink(), "does not exist"),
        (lambda p: (p / WEIGHTS).write_bytes(b""), "truncated"),
    ],
)
def test_damage_is_said_in_one_line(damage: Callable[[Path], Any], reason: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(Unreadable, match=reason) as error:
        readers.read(copy)
    assert "\n" not in str(error.value)


def test_a_truncated_weight_file(copy: Path) -> None:
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(Unreadable, match="truncated"):
        readers.read(copy)


def test_cut_out_multiplications(package: Path, model: FoldedModel) -> None:
    """Each alone, with the same bytes: x @ dense(leaf).T."""
    generator = np.random.default_rng(0)
    for weight in readers.read(package).weights:
        found = weight.load()
        leaf = integers.wanted(model).leaf(weight.name, weight.kind)
        dense = dequantize(leaf.codes, leaf.scales, leaf.zero_points).numpy()
        x = generator.normal(size=(5, found.codes.shape[1])).astype(np.float32)
        ids = np.arange(5)[None]
        given, want = (x, x @ dense.T) if weight.kind == "matmul" else (ids, dense[ids])
        (got,) = CoremlReference().evaluate(weight.program(), [{weight.input: given}], Setting())
        np.testing.assert_allclose(got, want, atol=1e-5)
