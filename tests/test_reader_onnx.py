# SPDX-License-Identifier: Apache-2.0
"""The reader gets back every integer that a second, naive writer put into a file, and is not led by names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import onnx_by_hand as hand
from dlqat.devices.all import DEVICES
from dlqat.devices.device import Setting
from dlqat.runtime_tests.readers import read
from dlqat.runtime_tests.readers.contents import Contents, Integers, Unreadable, parts

LAYER = "model.layers.0.mlp.up_proj"
FRESH = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def matrices(draw: st.DrawFn) -> dict[str, Any]:
    """codes, scales and zero-points of any grid, and the bits that hold them."""
    bits, group = draw(st.sampled_from([2, 3, 4, 5, 8])), draw(st.sampled_from([16, 32, 64, 128, None]))
    out = draw(st.integers(1, 9))
    inputs = draw(st.integers(1, 3)) * group if group else draw(st.integers(1, 70))
    seed, symmetric = draw(st.integers(0, 2**16)), draw(st.booleans())
    rng, groups = np.random.default_rng(seed), inputs // group if group else 1
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    return {
        "codes": rng.integers(low, high, (out, inputs)).astype(np.int8),
        "scales": rng.uniform(0.001, 2, (out, groups)).astype(np.float32),
        "zeros": None if symmetric else rng.integers(low, high, (out, groups)).astype(np.int8),
        "bits": {3: 4, 5: 8}.get(bits, bits),
    }


def same(found: Integers, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> None:
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scales.view(np.uint32), scales.view(np.uint32))
    have = np.zeros_like(codes[:1, :1]) if found.zero_points is None else found.zero_points
    np.testing.assert_array_equal(*np.broadcast_arrays(have, 0 if zeros is None else zeros))


def only(contents: Contents) -> Integers:
    assert contents.faults == ()
    (weight,) = contents.weights
    assert weight.name == LAYER
    return weight.load()


@FRESH
@given(matrices(), st.booleans(), st.booleans())
def test_qdq(tmp_path: Path, matrix: dict[str, Any], unsigned: bool, external: bool) -> None:
    """Every grid as DequantizeLinear, signed and unsigned codes, inside the file and beside it."""
    if unsigned and matrix["zeros"] is None:
        matrix["zeros"] = np.zeros_like(matrix["scales"], np.int8)  # an unsigned grid needs its middle
    built = hand.model(*hand.qdq(LAYER, **matrix, unsigned=unsigned))
    found = only(read(hand.save(built, tmp_path, external=external)))
    same(found, matrix["codes"], matrix["scales"], matrix["zeros"])


@FRESH
@given(matrices(), st.booleans())
def test_matmul_nbits(tmp_path: Path, matrix: dict[str, Any], external: bool) -> None:
    """Every grid as MatMulNBits; one scale per row repeated for blocks of 32, the last of which is filled up."""
    codes, scales, zeros = matrix["codes"], matrix["scales"], matrix["zeros"]
    block = codes.shape[1] // scales.shape[1]
    if scales.shape[1] == 1:
        block, blocks = 32, -(-codes.shape[1] // 32)
        scales, zeros = np.repeat(scales, blocks, 1), None if zeros is None else np.repeat(zeros, blocks, 1)
    built = hand.model(*hand.matmul_nbits(LAYER, codes, scales, zeros, matrix["bits"], block))
    found = only(read(hand.save(built, tmp_path, external=external)))
    same(found, codes, scales, zeros)
    assert found.block == block


def some(bits: int = 4, out: int = 4, inputs: int = 64, groups: int = 2) -> dict[str, Any]:
    rng, half = np.random.default_rng(bits), 1 << (bits - 1)
    return {
        "codes": rng.integers(-half, half, (out, inputs)).astype(np.int8),
        "scales": rng.uniform(0.01, 1, (out, groups)).astype(np.float32),
        "zeros": rng.integers(-half, half, (out, groups)).astype(np.int8),
    }


def test_unsigned_without_zero_point(tmp_path: Path) -> None:
    """UINT4 whose zero-point is left out: DequantizeLinear subtracts 0, which is -8 among signed codes."""
    matrix = some()
    nodes, stored = hand.qdq(LAYER, matrix["codes"], matrix["scales"], None, 4, unsigned=True)
    found = only(read(hand.save(hand.model(nodes, stored), tmp_path)))
    same(found, matrix["codes"], matrix["scales"], np.full_like(matrix["zeros"], -8))


def embeddings() -> dict[str, Callable[[], tuple[list[Any], list[Any], dict[str, Any]]]]:
    """Four ways to look rows up."""
    e = "model.embed_tokens"
    blocks, row = some(8, 12, 64, 2), some(8, 12, 64, 1)

    def stored(matrix: dict[str, Any], *, turned: bool) -> list[Any]:
        codes, scales, zeros = (m.T if turned else m for m in matrix.values())
        if turned and scales.shape[0] == 1:
            scales, zeros = scales[0], zeros[0]
        return [
            hand.tensor(f"{e}.codes", TensorProto.INT8, codes.shape, hand.pack(codes.astype(np.int64), 8)),
            hand.floats(f"{e}.scales", scales),
            hand.tensor(f"{e}.zero_points", TensorProto.INT8, zeros.shape, hand.pack(zeros.astype(np.int64), 8)),
        ]

    def rows_picked() -> tuple[list[Any], list[Any], dict[str, Any]]:
        names = ("codes", "scales", "zero_points")
        nodes = [helper.make_node("Gather", [f"{e}.{n}", "x"], [n], name=f"{e}/Gather.{n}") for n in names]
        dq = helper.make_node("DequantizeLinear", names, ["y"], name=f"{e}/DequantizeLinear", axis=2, block_size=32)
        return [*nodes, dq], stored(blocks, turned=False), blocks

    def columns_picked() -> tuple[list[Any], list[Any], dict[str, Any]]:
        nodes = [helper.make_node("Gather", [f"{e}.codes", "x"], ["codes"], name=f"{e}/Gather", axis=1)]
        for n in ("scales", "zero_points"):
            nodes.append(helper.make_node("Gather", [f"{e}.{n}", "x"], [f"{n}.1"], name=f"{e}/Gather.{n}", axis=0))
            nodes.append(helper.make_node("Unsqueeze", [f"{n}.1", "axes"], [n], name=f"{e}/Unsqueeze.{n}"))
        names = ("codes", "scales", "zero_points")
        nodes += [
            helper.make_node("DequantizeLinear", names, ["t"], name=f"{e}/DequantizeLinear", axis=0, block_size=64),
            helper.make_node("Transpose", ["t"], ["y"], name=f"{e}/Transpose", perm=[1, 2, 0]),
        ]
        return nodes, [*stored(row, turned=True), hand.ints("axes", [0])], row

    def dequantized_first() -> tuple[list[Any], list[Any], dict[str, Any]]:
        names = [f"{e}.{n}" for n in ("codes", "scales", "zero_points")]
        dq = helper.make_node("DequantizeLinear", names, ["w"], name=f"{e}/DequantizeLinear", axis=1, block_size=32)
        return (
            [dq, helper.make_node("Gather", ["w", "x"], ["y"], name=f"{e}/Gather")],
            stored(blocks, turned=False),
            blocks,
        )

    def block_quantized() -> tuple[list[Any], list[Any], dict[str, Any]]:
        four = some(4, 12, 64, 2)
        _, (codes, scales, zeros) = hand.matmul_nbits("h", four["codes"], four["scales"], four["zeros"], 4, 32)
        layout = {"bits": 4, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
        nodes = [
            helper.make_node("Reshape", [codes.name, "shape"], ["b"], name=f"{e}/Reshape"),
            helper.make_node(
                "GatherBlockQuantized",
                ["b", "x", scales.name, zeros.name],
                ["y"],
                name=f"{e}/GatherBlockQuantized",
                domain=hand.MS,
                **layout,
            ),
        ]
        return nodes, [codes, scales, zeros, hand.ints("shape", [12, 32])], four

    def block_quantized_filled_up() -> tuple[list[Any], list[Any], dict[str, Any]]:
        """40 features in blocks of 32: a row is stored with 64, and cut to 40 again."""
        cut = some(8, 12, 40, 2)
        _, stored = hand.matmul_nbits(e, cut["codes"], cut["scales"], cut["zeros"], 8, 32)
        del stored[0].dims[:]
        stored[0].dims.extend([12, 64])
        layout = {"bits": 8, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
        inputs = [stored[0].name, "x", *(s.name for s in stored[1:])]
        nodes = [
            helper.make_node(
                "GatherBlockQuantized", inputs, ["g"], name=f"{e}/GatherBlockQuantized", domain=hand.MS, **layout
            ),
            helper.make_node("Slice", ["g", "start", "end", "axis"], ["y"], name=f"{e}/Slice"),
        ]
        ends = [hand.ints("start", [0]), hand.ints("end", [40]), hand.ints("axis", [2])]
        return nodes, [*stored, *ends], cut

    ways = (rows_picked, columns_picked, dequantized_first, block_quantized, block_quantized_filled_up)
    return {f.__name__: f for f in ways}


@pytest.mark.parametrize("way", embeddings())
def test_embedding(tmp_path: Path, way: str) -> None:
    """Codes, scales and zero-points of an embedding; the program cut out of the file looks the same rows up."""
    nodes, stored, matrix = embeddings()[way]()
    contents = read(hand.save(hand.model(nodes, stored, input_type=TensorProto.INT64), tmp_path, external=True))
    (weight,) = contents.weights
    assert (weight.name, weight.kind, contents.faults) == ("model.embed_tokens", "gather", ())
    same(weight.load(), **matrix)
    ids = np.array([[3, 0, 11]])
    (rows,) = DEVICES["host-ort"].evaluate(weight.program(), [{weight.input: ids}], Setting())
    np.testing.assert_array_equal(rows.reshape(3, -1), dense(matrix)[ids[0]])


def test_embedding_cut_elsewhere(tmp_path: Path) -> None:
    """Negative control: another part of the stored row than its beginning."""
    nodes, stored, _ = embeddings()["block_quantized_filled_up"]()
    next(s for s in stored if s.name == "start").raw_data = np.array([1], np.int64).tobytes()
    contents = read(hand.save(hand.model(nodes, stored, input_type=TensorProto.INT64), tmp_path))
    assert contents.weights == ()
    assert "not their beginning" in contents.faults[0]


def dense(matrix: dict[str, Any]) -> np.ndarray:
    codes, scales, zeros = matrix["codes"], matrix["scales"], matrix["zeros"]
    width = next(w for w in (32, codes.shape[1]) if -(-codes.shape[1] // w) == scales.shape[1])
    wide = [np.repeat(m, width, 1)[:, : codes.shape[1]] for m in (zeros, scales)]
    return (codes.astype(np.float32) - wide[0]) * wide[1]


@pytest.mark.parametrize("form", ["qdq", "ort"])
def test_cut(tmp_path: Path, form: str) -> None:
    """A linear cut out of a larger graph multiplies with its own bytes."""
    matrix = some()
    nodes, stored = (
        hand.qdq(LAYER, **matrix, bits=4) if form == "qdq" else hand.matmul_nbits(LAYER, **matrix, bits=4, block=32)
    )
    nodes = [helper.make_node("Relu", ["x"], ["r"]), *nodes, helper.make_node("Relu", ["y"], ["z"])]
    nodes[-2].input[0] = "r"
    built = hand.model(nodes, stored)
    built.graph.output[0].name = "z"
    (weight,) = read(hand.save(built, tmp_path, external=True)).weights
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    (y,) = DEVICES["host-ort"].evaluate(weight.program(), [{weight.input: x}], Setting())
    np.testing.assert_allclose(y, x @ dense(matrix).T, rtol=1e-4, atol=1e-5)


def test_names() -> None:
    """Rows that were put together are told apart by their joined name."""
    assert parts("lm_head") == ("lm_head",)
    assert parts("a.b.q_proj+k_proj") == ("a.b.q_proj", "a.b.k_proj")
    assert parts("a.q_proj+a.k_proj") == ("a.q_proj", "a.k_proj")


Edit = Callable[[Any], None]


def other_name(built: Any) -> None:
    built.graph.node[0].name = "model.layers.0.mlp.gate_proj/DequantizeLinear"


def no_name(built: Any) -> None:
    built.graph.node[1].name = "MatMul_1"


def rescaled(built: Any) -> None:
    built.graph.initializer.append(hand.floats("two", np.full((1,), 2)))
    built.graph.node[1].input[1] = "w2"
    built.graph.node.insert(1, helper.make_node("Mul", ["w", "two"], ["w2"], name=f"{LAYER}/Mul"))


def another_block(built: Any) -> None:
    del built.graph.node[0].attribute[:]
    built.graph.node[0].attribute.extend([helper.make_attribute("axis", 0), helper.make_attribute("block_size", 16)])


def surplus(built: Any) -> None:
    built.graph.initializer.append(hand.tensor("spare.codes", TensorProto.INT8, (4,), b"abcd"))


def used_otherwise(built: Any) -> None:
    built.graph.initializer.append(hand.tensor("odd", TensorProto.INT8, (4,), b"abcd"))
    built.graph.node.append(helper.make_node("Cast", ["odd"], ["f"], to=1))
    built.graph.node.append(helper.make_node("Add", ["y", "f"], ["z"]))
    built.graph.output[0].name = "z"


def half_scales(built: Any) -> None:
    scales = built.graph.initializer[1]
    values = np.frombuffer(scales.raw_data, np.float32).astype(np.float16)
    scales.raw_data, scales.data_type = values.tobytes(), TensorProto.FLOAT16


def twice(built: Any) -> None:
    built.graph.node.append(helper.make_node("MatMul", ["x", "w"], ["y2"], name=f"{LAYER}/MatMul"))
    built.graph.output.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, None))


def hidden(built: Any) -> None:
    inner = helper.make_graph([], "inner", [], [])
    built.graph.node.append(helper.make_node("If", ["c"], ["q"], then_branch=inner, else_branch=inner))


ODD: dict[str, tuple[Edit, str]] = {
    "other name": (other_name, "two different layers"),
    "no name": (no_name, "names no layer"),
    "rescaled": (rescaled, "cannot follow"),
    "another block": (another_block, "block 16"),
    "surplus": (surplus, "no output depends on it"),
    "used otherwise": (used_otherwise, "does not know"),
    "half scales": (half_scales, "FLOAT16"),
    "twice": (twice, "more than one operation"),
    "hidden": (hidden, "graph inside"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_graphs(tmp_path: Path, case: str) -> None:
    """Negative controls: what cannot be explained is told, by name, and never taken as proved."""
    edit, says = ODD[case]
    built = hand.model(*hand.qdq(LAYER, **some(), bits=4))
    assert read(hand.save(built, tmp_path)).faults == ()
    edit(built)
    contents = read(hand.save(built, tmp_path))
    told = list(contents.faults)
    for weight in contents.weights:
        try:
            weight.load()
        except Unreadable as error:
            told.append(str(error))
    assert any(says in line for line in told), told


def test_permuted_inputs(tmp_path: Path) -> None:
    """A MatMulNBits with g_idx multiplies other inputs than its rows say."""
    nodes, stored = hand.matmul_nbits(LAYER, **some(), bits=4, block=32)
    nodes[0].input.append("order")
    stored.append(hand.tensor("order", TensorProto.INT32, (64,), np.arange(64, dtype=np.int32)[::-1].tobytes()))
    assert any("g_idx" in fault for fault in read(hand.save(hand.model(nodes, stored), tmp_path)).faults)


def test_damaged_files(tmp_path: Path) -> None:
    """Truncated data, a missing data file, a location outside the folder, no protobuf: one clear line each."""
    built = hand.model(*hand.qdq(LAYER, **some(), bits=4))
    path = hand.save(built, tmp_path / "a", external=True)
    data = path.with_name("model.onnx_data")
    content = data.read_bytes()
    data.write_bytes(content[:100])
    with pytest.raises(Unreadable, match=r"up_proj.codes: model.onnx_data, bytes 0..128, but the file ends at 100"):
        read(path).weights[0].load()
    data.unlink()
    with pytest.raises(Unreadable, match=r"model.onnx_data. beside model.onnx, which does not exist"):
        read(path).weights[0].load()
    (tmp_path / "outside").write_bytes(content)
    path.write_bytes(path.read_bytes().replace(b"model.onnx_data", b"../outside12345"[:15]))
    with pytest.raises(Unreadable, match="leads out of its folder"):
        read(path).weights[0].load()
    path.write_bytes(b"no protobuf at all")
    with pytest.raises(Unreadable, match="no ONNX model"):
        read(path)


def test_short_raw_data(tmp_path: Path) -> None:
    built = hand.model(*hand.qdq(LAYER, **some(), bits=4))
    codes = built.graph.initializer[0]
    codes.raw_data = codes.raw_data[:-1]
    with pytest.raises(Unreadable, match="holds 127 bytes, its shape .* needs 128"):
        read(hand.save(built, tmp_path)).weights[0].load()


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """protobuf gives bytes in place of a string that is not UTF-8."""
    program = tmp_path / "model.onnx"
    node = helper.make_node("Identity", ["tokens"], ["logits"])
    program.write_bytes(
        helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString().replace(b"tokens", b"token\xff")
    )
    with pytest.raises(Unreadable, match="a input is not UTF-8 text"):
        read(program)
