# SPDX-License-Identifier: Apache-2.0
"""What stands in the ONNX files: names, layouts, exact integers, fusions, shared bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import models
import onnx_runs
import unions
from dlqat import architecture, folded
from dlqat.exporters.builder import Linear
from dlqat.exporters.merge import merge
from dlqat.exporters.onnx import graph as onnx_graph
from dlqat.exporters.onnx import ort, qdq
from dlqat.exporters.onnx.ort import Ort
from dlqat.exporters.onnx.qdq import Qdq
from dlqat.folded import Quantized, disk
from dlqat.folded.disk import FoldedModel
from dlqat.grid import Grid
from dlqat.recipe import Recipe, Rule
from onnx_runs import FORMS

GRIDS = [
    Grid(2, 16),
    Grid(3, 32),
    Grid(3, 32, symmetric=False),
    Grid(4, 32),
    Grid(4, None, symmetric=False),
    Grid(8, None),
]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Tensor name -> content, 4- and 2-bit integers one to an element."""
    model = onnx.load(str(path))
    return {t.name: np.asarray(numpy_helper.to_array(t)) for t in model.graph.initializer}


def leaves(model: FoldedModel) -> dict[str, Quantized]:
    return {path: leaf for name in model.layers for path, leaf in folded.leaves(model.layers[name], name)}


def uniform(grid: Grid) -> Recipe:
    fields = {"bits": grid.bits, "group_size": grid.group_size or 0, "symmetric": grid.symmetric}
    return Recipe((Rule(".*", fields),))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_qdq_integers(tmp_path: Path, grid: Grid) -> None:
    """codes [K, N], scales [K / g, N] or [N], zero-points like them: equal, bit for bit."""
    model = models.fold_model(models.tiny("llama"), uniform(grid))
    stored = taken_apart(arrays(onnx_runs.write(model, tmp_path, "qdq")), leaves(model))
    for path, leaf in leaves(model).items():
        np.testing.assert_array_equal(stored[f"{path}.codes"].astype(np.int8), leaf.codes.numpy().T)
        for what, values in (("scales", leaf.scales), ("zero_points", leaf.zero_points)):
            if values is None:
                assert f"{path}.{what}" not in stored
            else:
                turned = values.numpy()[:, 0] if grid.group_size is None else values.numpy().T
                np.testing.assert_array_equal(stored[f"{path}.{what}"].astype(turned.dtype), turned)


def taken_apart(stored: dict[str, np.ndarray], parts: dict[str, Quantized]) -> dict[str, np.ndarray]:
    """Tensors of merged leaves cut along their columns, in the order of their names."""
    found: dict[str, np.ndarray] = {}
    for name, array in stored.items():
        names = parts_of(name)
        if len(names) == 1 or not name.endswith((".codes", ".scales", ".zero_points")):
            found[name] = array
            continue
        ends = np.cumsum([parts[n.rpartition(".")[0]].codes.shape[0] for n in names])
        found |= dict(zip(names, np.split(array, ends[:-1], axis=-1), strict=True))
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ort_integers(tmp_path: Path, grid: Grid) -> None:
    """Bytes unpacked by the rule of onnx_ort's docstring, merged layers taken apart by their names."""
    model = models.fold_model(models.tiny("llama"), uniform(grid))
    path = onnx_runs.write(model, tmp_path, "ort")
    stored, found = arrays(path), set[str]()
    for node in onnx.load(str(path), load_external_data=False).graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        name, have = node.name.rpartition("/")[0], {a.name: a.i for a in node.attribute}
        bits, size = have["bits"], have["block_size"]
        prefix, _, last = name.rpartition(".")
        parts = [leaves(model)[f"{prefix}.{part}" if prefix else part] for part in last.split("+")]
        found |= {f"{prefix}.{part}" if prefix else part for part in last.split("+")}
        codes = np.concatenate([p.codes.numpy() for p in parts])
        inputs, blocks = codes.shape[1], -(-codes.shape[1] // size)
        raw = stored[f"{name}.codes"].reshape(len(codes), -1)
        assert raw.shape[1] * 8 == blocks * size * bits
        np.testing.assert_array_equal(unpack(raw, bits)[:, :inputs], codes)
        scales = np.concatenate([p.scales.expand(-1, blocks).numpy() for p in parts])
        np.testing.assert_array_equal(stored[f"{name}.scales"], scales)
        if not grid.symmetric:
            zero_points = np.concatenate([p.zero_points.expand(-1, blocks).numpy() for p in parts])
            np.testing.assert_array_equal(unpack(stored[f"{name}.zero_points"], bits)[:, :blocks], zero_points)
    assert found == set(leaves(model))


def unpack(raw: np.ndarray, bits: int) -> np.ndarray:
    """Bit by bit: slow, and not the writer's way round."""
    stream = np.unpackbits(raw, axis=-1, bitorder="little").reshape(len(raw), -1, bits)
    return (stream * (1 << np.arange(bits))).sum(-1) - (1 << (bits - 1))


def test_names_of_unions(tmp_path: Path) -> None:
    """A leaf deep inside has its path; labels stand as int32 under the path of folded.labels."""
    model = unions.fold_model("llama-tied")
    for form in FORMS:
        stored = arrays(onnx_runs.write(model, tmp_path / form, form))
        merged = {part for name in stored for part in parts_of(name)}
        assert {f"{path}.codes" for path in leaves(model)} <= merged
        for name in model.layers:
            for path, ids in folded.labels(model.layers[name], name):
                np.testing.assert_array_equal(stored[path], ids.numpy())
                assert stored[path].dtype == np.int32


def parts_of(tensor: str) -> list[str]:
    name, _, what = tensor.rpartition(".")
    prefix, _, last = name.rpartition(".")
    return [f"{prefix}.{part}.{what}" if prefix else tensor for part in last.split("+")]


@pytest.mark.parametrize("family", models.FAMILIES)
def test_every_layer_is_fused(tmp_path: Path, family: str) -> None:
    """onnxruntime turns each DequantizeLinear + MatMul (+ bias) of the standard form into one MatMulNBits."""
    path = onnx_runs.write(models.fold_model(models.tiny(family)), tmp_path, "qdq")
    kinds = onnx_runs.operators(path, tmp_path)
    assert kinds.count("MatMulNBits") == 2 * 4 + 1  # q, k, v together and gate, up together
    assert "MatMul" not in kinds
    assert kinds.count("DequantizeLinear") == 1  # of the embedding's rows
    assert kinds.count("Add") == 2 * 2 + 3  # the residuals, and indices of the wanted logits


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_opset_is_the_lowest_that_has_the_operators(tmp_path: Path, bits: int) -> None:
    model = models.fold_model(models.tiny(), uniform(Grid(bits, 32)))
    loaded = {form: onnx.load(str(onnx_runs.write(model, tmp_path / form, form))) for form in FORMS}
    opsets = {form: next(o.version for o in m.opset_import if not o.domain) for form, m in loaded.items()}
    assert opsets == {"qdq": 25 if bits == 2 else 23, "ort": 21}
    assert {n.domain for n in loaded["qdq"].graph.node} == {""}


@pytest.mark.parametrize("family", models.FAMILIES)
def test_standard_form_is_standard(tmp_path: Path, family: str) -> None:
    """onnx's own checker, with shape inference, has nothing to say."""
    path = onnx_runs.write(models.fold_model(models.tiny(family)), tmp_path, "qdq")
    for name in ("model.onnx", "model_generate.onnx"):
        onnx.checker.check_model(str(path.with_name(name)), full_check=True)


@pytest.mark.parametrize("form", FORMS)
def test_tied_head_and_embedding_are_the_same_bytes(tmp_path: Path, form: str) -> None:
    """Two names, one region of the data file; an untied head has its own."""
    regions = {}
    for family in ("llama", "llama-tied"):
        model = models.fold_model(models.tiny(family, vocab_size=320))
        path = onnx_runs.write(model, tmp_path / family, form)
        loaded = onnx.load(str(path), load_external_data=False)
        regions[family] = {t.name: region(t) for t in loaded.graph.initializer}
    for what in ("codes", "scales"):
        names = f"model.embed_tokens.{what}", f"lm_head.{what}"
        tied, untied = ([regions[family][n] for n in names] for family in ("llama-tied", "llama"))
        assert tied[0] == tied[1] is not None
        assert untied[0] != untied[1]


def region(tensor: Any) -> tuple[int, int] | None:
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    entry = {e.key: e.value for e in tensor.external_data}
    assert entry["location"] == "model.onnx_data"
    return int(entry["offset"]), int(entry["length"])


@pytest.mark.parametrize("form", FORMS)
def test_inputs_and_outputs(tmp_path: Path, form: str) -> None:
    """The names that onnxruntime-genai and transformers.js expect."""
    path = onnx_runs.write(models.fold_model(models.tiny()), tmp_path, form)
    run = onnx_runs.session(path)
    cache = [(layer, what) for layer in range(2) for what in ("key", "value")]
    asked = ["input_ids", "attention_mask", *(["position_ids"] if form == "qdq" else [])]
    assert [i.name for i in run.get_inputs()] == asked + [f"past_key_values.{i}.{x}" for i, x in cache]
    assert [i.name for i in run.get_overridable_initializers()] == ["num_logits_to_keep"]
    assert [o.name for o in run.get_outputs()] == ["logits"] + [f"present.{i}.{x}" for i, x in cache]
    assert run.get_inputs()[-1].shape == ["batch_size", 2, "past_sequence_length", 16]


@pytest.mark.parametrize("form", FORMS)
def test_same_model_same_bytes(tmp_path: Path, form: str) -> None:
    """An export can be repeated: nothing of the machine or the clock is in the files."""
    model = models.fold_model(models.tiny())
    first, second = (onnx_runs.write(model, tmp_path / name, form).parent for name in ("a", "b"))
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_what_is_merged() -> None:
    """Leaves of one grid, biases filled with zeros; other grids, float and single layers are left alone."""
    model = models.fold_model(models.tiny("llama"))
    q, k = (model.layers[f"model.layers.0.self_attn.{x}_proj"] for x in "qk")
    assert isinstance(q, Quantized)
    assert isinstance(k, Quantized)
    bias = k.scales[:, 0].clone()
    merged = merge([Linear("a.b.q", q), Linear("a.b.k", k, bias)])
    assert merged is not None
    assert isinstance(merged.weight, Quantized)
    assert merged.name == "a.b.q+k"
    np.testing.assert_array_equal(folded.dense(merged.weight), np.concatenate([folded.dense(q), folded.dense(k)]))
    assert merged.bias is not None
    np.testing.assert_array_equal(merged.bias[:64], 0)
    np.testing.assert_array_equal(merged.bias[64:], bias)
    other = models.round_to_nearest(folded.dense(k), Grid(8, 32))
    assert merge([Linear("q", q), Linear("k", other)]) is None
    assert merge([Linear("q", q), Linear("k", folded.dense(k))]) is None
    assert merge([Linear("q", q)]) is None


@pytest.mark.parametrize("form", FORMS)
def test_description_writes_nothing(tmp_path: Path, form: str) -> None:
    """A builder that is only asked (--dry-run) leaves no file."""
    model = models.fold_model(models.tiny("llama"))
    facts, leaf = architecture.read(model.config), model.layers["lm_head"]
    assert isinstance(leaf, Quantized)
    _ = Qdq(facts, tmp_path) if form == "qdq" else Ort(facts, tmp_path, 64)
    storage = qdq.Storage() if form == "qdq" else ort.Storage()
    assert storage.supports("lm_head", leaf) is None
    assert "8" in storage.describe("lm_head", leaf)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pack_puts_the_first_code_lowest(bits: int) -> None:
    """Exact, odd lengths included: the last byte is filled with zeros."""
    codes = np.arange(2 * 7, dtype=np.uint8).reshape(2, 7) & ((1 << bits) - 1)
    packed = onnx_graph.pack(codes, bits)
    assert packed.shape == (2, -(-7 * bits // 8))
    stream = np.unpackbits(packed, axis=-1, bitorder="little")[:, : 7 * bits].reshape(2, 7, bits)
    np.testing.assert_array_equal((stream * (1 << np.arange(bits))).sum(-1), codes)


def test_checkpoint_on_disk_gives_the_same_files(tmp_path: Path) -> None:
    """Layers read lazily from folded/ and layers in memory are written alike."""
    model = models.write_folded(tmp_path / "folded", "qwen2")
    a = onnx_runs.write(model, tmp_path / "a", "ort")
    b = onnx_runs.write(disk.read(tmp_path / "folded"), tmp_path / "b", "ort")
    assert a.read_bytes() == b.read_bytes()
    assert a.with_name("model.onnx_data").read_bytes() == b.with_name("model.onnx_data").read_bytes()
