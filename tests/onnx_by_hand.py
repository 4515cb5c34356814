# SPDX-License-Identifier: Apache-2.0
"""Small ONNX files written with onnx.helper and plain loops: a second writer, for the tests of the reader.

Bits are packed one by one, as the ONNX specification words it, so that nothing is shared with the reader
or with the exporters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

SIGNED = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}
UNSIGNED = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
MS = "com.microsoft"


def pack(values: np.ndarray, bits: int) -> bytes:
    """Integers in order, the first in the lowest bits of the first byte; two's complement if negative."""
    per, out = 8 // bits, bytearray(-(-values.size * bits // 8))
    for i, value in enumerate(values.reshape(-1).tolist()):
        out[i // per] |= (value % (1 << bits)) << (bits * (i % per))
    return bytes(out)


def tensor(name: str, kind: int, shape: Sequence[int], raw: bytes) -> TensorProto:
    return TensorProto(name=name, data_type=kind, dims=shape, raw_data=raw)


def floats(name: str, values: np.ndarray) -> TensorProto:
    return tensor(name, TensorProto.FLOAT, values.shape, np.ascontiguousarray(values, np.float32).tobytes())


def ints(name: str, values: Sequence[int]) -> TensorProto:
    return tensor(name, TensorProto.INT64, (len(values),), np.array(values, np.int64).tobytes())


def packed_rows(values: np.ndarray, bits: int, width: int) -> bytes:
    """Rows of unsigned numbers, each filled up with zeros to `width` numbers."""
    filled = np.zeros((len(values), width), np.int64)
    filled[:, : values.shape[1]] = values
    return b"".join(pack(row, bits) for row in filled)


def matmul_nbits(
    name: str, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int, block: int
) -> tuple[list[Any], list[Any]]:
    """(nodes, initializers) of x -> y. codes and zeros signed [out, in], [out, blocks]."""
    (out, inputs), half, blocks = codes.shape, 1 << (bits - 1), -(-codes.shape[1] // block)
    stored = [
        tensor(
            f"{name}.codes",
            TensorProto.UINT8,
            (out, blocks, block * bits // 8),
            packed_rows(codes.astype(np.int64) + half, bits, blocks * block),
        ),
        floats(f"{name}.scales", scales),
    ]
    if zeros is not None:
        width = -(-blocks * bits // 8)
        raw = packed_rows(zeros.astype(np.int64) + half, bits, width * 8 // bits)
        stored.append(tensor(f"{name}.zero_points", TensorProto.UINT8, (out, width), raw))
    layout = {"K": inputs, "N": out, "bits": bits, "block_size": block}
    node = helper.make_node(
        "MatMulNBits", ["x", *(t.name for t in stored)], ["y"], name=f"{name}/MatMulNBits", domain=MS, **layout
    )
    return [node], stored


def qdq(
    name: str, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int, *, unsigned: bool = False
) -> tuple[list[Any], list[Any]]:
    """DequantizeLinear and MatMul, x -> y; one scale per output, or blocks of inputs. `unsigned` adds 2^(bits-1)."""
    (out, inputs), groups = codes.shape, scales.shape[1]
    kind, shift = (UNSIGNED if unsigned else SIGNED)[bits], (1 << (bits - 1) if unsigned else 0)

    def laid(values: np.ndarray) -> np.ndarray:
        return values[:, 0] if groups == 1 else values.T

    layout = {"axis": 1} if groups == 1 else {"axis": 0, "block_size": inputs // groups}
    stored = [
        tensor(f"{name}.codes", kind, (inputs, out), pack(codes.T.astype(np.int64) + shift, bits)),
        floats(f"{name}.scales", laid(scales)),
    ]
    if zeros is not None:
        z = laid(zeros).astype(np.int64) + shift
        stored.append(tensor(f"{name}.zero_points", kind, z.shape, pack(z, bits)))
    dq = helper.make_node(
        "DequantizeLinear", [t.name for t in stored], ["w"], name=f"{name}/DequantizeLinear", **layout
    )
    return [dq, helper.make_node("MatMul", ["x", "w"], ["y"], name=f"{name}/MatMul")], stored


def sums(name: str, codes: np.ndarray, scales: np.ndarray) -> tuple[list[Any], list[Any]]:
    """x -> y as products of bytes (the web form), 4-bit codes; one scale per output, or groups of inputs."""
    (out, inputs), groups = codes.shape, scales.shape[1]
    grouped, laid = groups > 1, (inputs, out)
    if grouped:
        laid = (groups, 1, inputs // groups, out)
    first, second = np.split((codes.T + 8).astype(np.uint8).reshape(laid), 2, -2)
    halves = first + 16 * second
    scale_shape = (groups, 1, 1, out) if grouped else (out,)
    stored = [
        tensor(f"{name}.codes", TensorProto.UINT8, halves.shape, halves.tobytes()),
        floats(f"{name}.scales", scales.T.reshape(scale_shape)),
        *(floats(n, np.array(v, np.float32)) for n, v in (("tiny", 1e-30), ("most", 127), ("middle", 128))),
        *(
            tensor(n, TensorProto.UINT8, (), bytes([v]))
            for n, v in (("middle.uint8", 128), ("mask", 15), ("by", 4), ("zero", 8))
        ),
        ints("last", [-1]),
        ints("first", [0]),
        ints("shape", [0, 0, groups, inputs // groups]),
    ]

    def op(kind: str, given: list[str], made: str, **attributes: Any) -> Any:
        return helper.make_node(kind, given, [made], name=f"{name}/{kind}", **attributes)

    b, q, step = ("b", "qt", "st") if grouped else ("x", "q", "step")
    turn = [op("Transpose", [v], f"{v[0]}t", perm=[2, 0, 1, 3]) for v in ("q", "step")] if grouped else []
    nodes = [
        *([op("Reshape", ["x", "shape"], "b")] if grouped else []),
        op("Abs", [b], "a"),
        op("ReduceMax", ["a", "last"], "c"),
        op("Max", ["c", "tiny"], "top"),
        op("Div", ["most", "top"], "inverse"),
        op("Div", ["top", "most"], "step"),
        op("Mul", [b, "inverse"], "d"),
        op("Round", ["d"], "e"),
        op("Add", ["e", "middle"], "g"),
        op("Cast", ["g"], "q", to=TensorProto.UINT8),
        *turn,
        op("BitwiseAnd", [f"{name}.codes", "mask"], "low"),
        op("BitShift", [f"{name}.codes", "by"], "high", direction="RIGHT"),
        op("Concat", ["low", "high"], "w", axis=len(laid) - 2),
        op("MatMulInteger", [q, "w", "middle.uint8", "zero"], "i"),
        op("Cast", ["i"], "f", to=TensorProto.FLOAT),
        op("Mul", ["f", f"{name}.scales"], "m"),
        op("Mul", ["m", step], "s" if grouped else "y"),
        *([op("ReduceSum", ["s", "first"], "y", keepdims=0)] if grouped else []),
    ]
    return nodes, stored if grouped else [t for t in stored if t.name not in ("first", "shape")]


def model(nodes: list[Any], stored: list[Any], *, input_type: int = TensorProto.FLOAT, form: str = "qdq") -> Any:
    """One graph, x -> y."""
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info("x", input_type, [None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored,
    )
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid(MS, 1)]
    built = helper.make_model(graph, opset_imports=opsets, ir_version=13)
    helper.set_model_props(built, {"dlqat.form": form})
    return built


def save(built: Any, folder: Path, *, external: bool = False) -> Path:
    """folder/model.onnx, its tensors of 16 bytes and more in model.onnx_data if `external`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.unlink(missing_ok=True)
    (folder / "model.onnx_data").unlink(missing_ok=True)
    options = {"save_as_external_data": True, "location": "model.onnx_data", "size_threshold": 16}
    onnx.save(built, str(path), **(options if external else {}))
    return path
