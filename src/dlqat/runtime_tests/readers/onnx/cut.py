# SPDX-License-Identifier: Apache-2.0
"""One multiplication of an ONNX file as a model of its own: the same nodes, the same bytes."""

from __future__ import annotations

from typing import Any, Literal

import onnx
from onnx import TensorProto

from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.onnx.file import OnnxFile, inlined


def cut(file: OnnxFile, output: str, entry: str, kind: Literal["matmul", "gather"]) -> bytes:
    """The nodes between `entry` (activations [rows, in], or token ids [1, n]) and `output`, serialized."""
    nodes, initializers = between(file, output, entry)
    shape = [None, None]
    graph = onnx.helper.make_graph(
        nodes,
        "one_linear",
        [
            onnx.helper.make_tensor_value_info(
                entry, TensorProto.FLOAT if kind == "matmul" else TensorProto.INT64, shape
            )
        ],
        [onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [inlined(file, name) for name in initializers],
    )
    model = onnx.helper.make_model(graph, opset_imports=file.model.opset_import, ir_version=file.model.ir_version)
    return model.SerializeToString()


def between(file: OnnxFile, output: str, entry: str) -> tuple[list[Any], list[str]]:
    """The nodes from `entry` to `output`, in their order, and the initializers that they use."""
    nodes: list[Any] = []
    wanted, seen = [output], {entry, ""}
    initializers: list[str] = []
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in file.initializers:
            initializers.append(name)
            continue
        if name not in file.producer:
            raise Unreadable(f"{output}: made of {name}, and not of {entry} alone")
        node = file.producer[name]
        seen.update(node.output)
        nodes.append(node)
        wanted.extend(node.input)
    order = {id(n): i for i, n in enumerate(file.nodes)}
    return sorted(nodes, key=lambda n: order[id(n)]), initializers


def cut_batched(file: OnnxFile, output: str, entry: str) -> bytes:
    """The same for nodes that want activations [batch, rows, in]: a program of `entry`.rows [rows, in]."""
    model = onnx.ModelProto.FromString(cut(file, output, entry, "matmul"))
    graph, rows, axis = model.graph, f"{entry}.rows", f"{entry}.axis"
    graph.node.insert(0, onnx.helper.make_node("Unsqueeze", [rows, axis], [entry]))
    graph.node.append(onnx.helper.make_node("Squeeze", [output, axis], [f"{output}.rows"]))
    graph.initializer.append(onnx.helper.make_tensor(axis, TensorProto.INT64, [1], [0]))
    graph.input[0].name, graph.output[0].name = rows, f"{output}.rows"
    return model.SerializeToString()
