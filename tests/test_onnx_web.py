# SPDX-License-Identifier: Apache-2.0
"""The web form: products of bytes that equal what is stated of them, in onnxruntime and in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

import artifacts
import models
import onnx_by_hand as hand
from dlqat import architecture
from dlqat import artifact as folders
from dlqat.devices.all import DEVICES
from dlqat.devices.device import Setting
from dlqat.exporters import decoder
from dlqat.exporters.onnx import web
from dlqat.exporters.onnx.qdq import Qdq
from dlqat.folded import Quantized
from dlqat.grid import Grid
from dlqat.recipe import Recipe, Rule
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check.linears import relative_error
from dlqat.runtime_tests.readers import read
from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.reference.arithmetic import PER_TOKEN_SYMMETRIC, Arithmetic, round_blocks
from onnx_runs import Text, session

LAYER = "model.layers.0.mlp.up_proj"
INT8 = Setting("int8")


def uniform(grid: Grid) -> Recipe:
    fields = {"bits": grid.bits, "group_size": grid.group_size or 0, "symmetric": grid.symmetric}
    return Recipe((Rule(".*", fields),))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp("web"), "web", "llama-tied")


GRIDS = (
    Grid(4, 32),
    Grid(3, 16, symmetric=False),
    Grid(4, None, symmetric=False),
    Grid(8, None),
    Grid(8, 32, symmetric=False),
)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ladder(tmp_path: Path, grid: Grid) -> None:
    """Groups and whole rows, with and without zero-points: integers equal, and every product as stated."""
    artifact = artifacts.export(tmp_path, "web", "llama-biased", uniform(grid))
    found = artifacts.checks(artifact, tmp_path / "folded", "L0", "L1", "L2")
    assert {c.status for c in found} == {"passed"}, [c.summary for c in found]
    kinds = {c.figures["arithmetic"] for c in found if c.rung == "L1"}
    where = f"in blocks of {grid.group_size}" if grid.group_size else "per token, symmetric"
    assert kinds == {f"float, int8 {where}"}  # float: the embedding's rows


def test_negative_controls(exported: Path) -> None:
    """Law 7: a changed code or scale is noticed; a doubled scale by L1."""
    found = artifacts.checks(exported, exported.parent / "folded", "L5")
    assert {c.status for c in found} == {"passed"}, [c.summary for c in found]


def test_it_is_as_small_as_its_codes(exported: Path) -> None:
    """4-bit codes stay 4-bit codes in the file, and a tied head is the embedding's bytes."""
    plain = artifacts.export(exported.parent / "plain", "qdq", "llama-tied")
    sizes = [(p / "onnx" / "model.onnx_data").stat().st_size for p in (exported, plain)]
    assert sizes[0] <= sizes[1]


def test_a_batch_is_its_rows(tmp_path: Path) -> None:
    """Two texts, one padded on the left: the logits of each alone."""
    model = models.fold_model(models.tiny("llama"))
    b = Qdq(architecture.read(model.config), tmp_path, web)
    decoder.forward(b, model)
    b.save({"dlqat.form": "web"})
    run = session(tmp_path / "model.onnx")
    long, short = [5, 9, 77, 3], [20, 21]
    rows = Text(run, batch=2).step([long, [0, 0, *short]], [[1] * 4, [0, 0, 1, 1]])
    for row, ids in ((rows[0], long), (rows[1][2:], short)):
        np.testing.assert_allclose(row, Text(run).step(ids)[0], atol=2e-5)


def test_the_rounding_is_the_stated_one(exported: Path) -> None:
    """Blocks of zeros, of one large value, of ties; another rounding is far away."""
    weight = next(w for w in read(folders.find(exported).program).weights if w.kind == "matmul")
    integers = weight.load()
    dense = integers.codes.astype(np.float64) * np.repeat(integers.scales.astype(np.float64), integers.block, 1)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(6, dense.shape[1])).astype(np.float32))
    x[1], x[2, 0], x[3] = 0, 1e4, torch.arange(dense.shape[1]) / 2 - 10
    x[3, ::32] = 127  # its step is 1, so every half is a tie
    (got,) = DEVICES["host-ort"].evaluate(weight.program(), [{weight.input: x.numpy()}], INT8)
    assert not got[1].any()
    expected, other = (r.round(x).double().numpy() @ dense.T for r in (Arithmetic(32), PER_TOKEN_SYMMETRIC))
    assert relative_error(got, expected) < tolerances.LINEAR_ERROR
    assert relative_error(got, other) > 1e-3


def test_sums_of_extremes_are_exact(tmp_path: Path) -> None:
    """255 * 127, twice: more than the 16 bits in which x86 without VNNI adds pairs of uint8 x int8."""
    model = models.fold_model(models.tiny("llama"), uniform(Grid(8, None)))
    name = "model.layers.0.mlp.down_proj"
    extreme = replace(model.layers[name], codes=torch.full_like(model.layers[name].codes, 127))
    artifact = artifacts.export_model(tmp_path, "web", replace(model, layers={**model.layers, name: extreme}))
    weight = next(w for w in read(folders.find(artifact).program).weights if w.name == name)
    inputs = extreme.codes.shape[1]
    (got,) = DEVICES["host-ort"].evaluate(weight.program(), [{weight.input: np.ones((1, inputs), np.float32)}], INT8)
    expected = 127.0 * inputs * extreme.scales[:, 0].double().numpy()
    assert relative_error(got, expected[None]) < tolerances.LINEAR_ERROR


def test_blocks_are_divided_as_c_divides() -> None:
    """127 / top is the nearest float32, as in MLAS: 127 times a reciprocal flips a code where x lies between two."""
    x = np.random.default_rng(0).normal(size=(4096, 32)).astype(np.float32)
    top = np.abs(x).max(1, keepdims=True)
    expected = np.round(x * (np.float32(127) / top)) * (top / np.float32(127))
    np.testing.assert_array_equal(round_blocks(torch.from_numpy(x), 32).numpy(), expected)


def test_an_odd_row_is_refused() -> None:
    """Two inputs share a byte."""
    leaf = models.fold_model(models.tiny("llama")).layers[LAYER]
    assert isinstance(leaf, Quantized)
    odd = replace(leaf, codes=leaf.codes[:, :33], grid=Grid(4, None))
    assert "33 is odd" in str(web.supports(odd))
    assert web.supports(replace(odd, grid=Grid(8, None))) is None


def test_it_is_unpacked_once_and_to_bytes(exported: Path, tmp_path: Path) -> None:
    """What onnxruntime makes of the file at load: codes as bytes, not as float32, and nothing left to unpack in a step."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession(str(folders.find(exported).program), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    stored = {t.name: t for t in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMulInteger"]
    assert products
    assert {stored[n.input[1]].data_type for n in products} == {onnx.TensorProto.UINT8}
    assert {"BitwiseAnd", "BitShift", "BitwiseXor", "Expand"}.isdisjoint(n.op_type for n in graph.node)


def test_in_a_browser(exported: Path) -> None:
    """Real Chromium, WebAssembly: every linear as stated, and logits of prefill and decode within the noise floor."""
    found = artifacts.climb("browser-wasm", exported, "L1", "L2")
    assert {c.rung: c.status for c in found} == {"L1": "passed", "L2": "passed"}, [c.summary for c in found]


def test_float_weights_in_a_browser(tmp_path: Path) -> None:
    """The qdq form with its weights turned into float32 at load: the setting that docs/onnx.md names."""
    program = folders.find(artifacts.export(tmp_path, "qdq", "llama-tied")).program
    browser, host, ids = artifacts.runnable("browser-wasm"), DEVICES["host-ort"], [5, 9, 77]
    (setting,) = [s for s in browser.settings(program, 1) if s.options]
    rows = browser.open(program, setting).logits(ids)
    np.testing.assert_allclose(rows, host.open(program, Setting()).logits(ids), atol=2e-5)


# The reader

Edit = Callable[[Any], None]


def by_hand(groups: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """(a model of one linear written with onnx.helper, codes [out, in], scales [out, groups])."""
    rng, out, inputs = np.random.default_rng(1), 4, 32
    codes = rng.integers(-8, 8, (out, inputs)).astype(np.int8)
    scales = rng.uniform(0.01, 1, (out, groups)).astype(np.float32)
    return hand.model(*hand.sums(LAYER, codes, scales)), codes, scales


@pytest.mark.parametrize("groups", [1, 2])
def test_reader(tmp_path: Path, groups: int) -> None:
    """A second writer's file gives back the integers that went in, and its program multiplies with them."""
    built, codes, scales = by_hand(groups)
    contents = read(hand.save(built, tmp_path))
    (weight,) = contents.weights
    assert (weight.name, weight.kind, contents.faults) == (LAYER, "matmul", ())
    found = weight.load()
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scales, scales)
    assert found.zero_points is None


def test_a_form_of_before_is_told_in_one_line(tmp_path: Path) -> None:
    """INT4 codes behind a Cast, as dlqat wrote them at first."""
    built, *_ = by_hand(1)
    codes = next(t for t in built.graph.initializer if t.name == f"{LAYER}.codes")
    codes.CopyFrom(hand.tensor(codes.name, onnx.TensorProto.INT4, (32, 4), bytes(64)))
    cast = onnx.helper.make_node("Cast", [codes.name], ["w"], name=f"{LAYER}/Cast", to=onnx.TensorProto.INT8)
    kept = [n for n in built.graph.node if n.op_type not in ("BitwiseAnd", "BitShift", "Concat")]
    del built.graph.node[:]
    built.graph.node.extend([cast, *kept])
    with pytest.raises(Unreadable, match=r"web form of an earlier dlqat \(INT4 codes\); export it again"):
        read(hand.save(built, tmp_path))


def node(built: Any, kind: str) -> Any:
    return next(n for n in built.graph.node if n.op_type == kind)


def other_step(built: Any) -> None:
    node(built, "Abs").input[0] = "q"


def other_middle(built: Any) -> None:
    stored = next(t for t in built.graph.initializer if t.name == "middle.uint8")
    stored.CopyFrom(numpy_helper.from_array(np.array(127, np.uint8), stored.name))


def no_step(built: Any) -> None:
    node(built, "ReduceSum").input[0] = "m"
    del built.graph.node[-2]


def added(built: Any) -> None:
    next(n for n in built.graph.node if "f" in n.input).op_type = "Add"


def squared(built: Any) -> None:
    node(built, "Round").op_type = "Floor"


def turned(built: Any) -> None:
    node(built, "Transpose").attribute[0].ints[:] = [2, 1, 0, 3]


def byte(name: str, value: int) -> Edit:
    """Another number where the bytes are taken apart."""

    def change(built: Any) -> None:
        stored = next(t for t in built.graph.initializer if t.name == name)
        stored.CopyFrom(numpy_helper.from_array(np.array(value, np.uint8), name))

    return change


def upside_down(built: Any) -> None:
    node(built, "Concat").input[:] = ["high", "low"]


def other_axis(built: Any) -> None:
    node(built, "Concat").attribute[0].i = 3


def to_the_left(built: Any) -> None:
    node(built, "BitShift").attribute[0].s = b"LEFT"


ODD: dict[str, tuple[Edit, str]] = {
    "a step of something else": (other_step, "is expected|taken from something else"),
    "another middle": (other_middle, "not with 128, 128 and 127"),
    "without the step": (no_step, "where Mul is expected"),
    "an addition": (added, "where Mul is expected"),
    "another rounding": (squared, "where Round is expected"),
    "other groups": (turned, "codes"),
    "another mask": (byte("mask", 7), "where 15 is expected"),
    "another shift": (byte("by", 3), "where 4 is expected"),
    "another zero": (byte("zero", 7), "raised by 8 and lowered by 7"),
    "upper halves first": (upside_down, "where BitwiseAnd is expected"),
    "halves side by side": (other_axis, "not made of the halves"),
    "shifted to the left": (to_the_left, "not made of the halves"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_graphs(tmp_path: Path, case: str) -> None:
    """Negative controls: what stands otherwise around the product is told, and never taken as proved."""
    edit, says = ODD[case]
    built, *_ = by_hand(2)
    edit(built)
    contents = read(hand.save(built, tmp_path))
    told = list(contents.faults)
    for weight in contents.weights:
        with pytest.raises(Exception, match=says):
            weight.load()
        told.append(says)
    assert any(part in line for line in told for part in says.split("|")), told
