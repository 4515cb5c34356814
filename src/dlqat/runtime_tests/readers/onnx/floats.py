# SPDX-License-Identifier: Apache-2.0
"""What of an ONNX file is not integers that multiply: float parameters, labels, and what nobody explains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.onnx.file import BITS, OnnxFile, stem


def dense(file: OnnxFile, node: Any) -> tuple[str, str, bool] | None:
    """(parameter name, initializer, whether it stands as [in, out]) of a linear or embedding that stays float."""
    if node.op_type not in ("MatMul", "Gather", "Gemm"):
        return None
    constant = [n for n in node.input if n in file.constants]
    if not constant or all(n in file.constants for n in node.output):
        return None
    source = node.input[1 if node.op_type == "MatMul" else 0]
    if node.op_type == "Gather":
        is_table = source in file.initializers and len(file.initializers[source].dims) == 2
        return (f"{stem(node)}.weight", source, False) if is_table and source.endswith(".weight") else None
    if node.op_type == "Gemm" or source not in file.initializers:
        raise Unreadable(f"{node.name}: {node.op_type} with a weight that the reader cannot follow ({constant[0]})")
    return f"{stem(node)}.weight", source, True


def labels(file: OnnxFile) -> dict[str, NDArray[np.int32]]:
    """Stored indices of a Gather on a computed value: the labels of a clustered layer."""
    return {
        node.input[1]: file.array(node.input[1]).astype(np.int32)
        for node in file.nodes
        if node.op_type == "Gather" and node.input[1] in file.initializers and node.input[1].endswith(".labels")
    }


def tensors(file: OnnxFile, plain: dict[str, tuple[str, bool]], explained: set[str]) -> dict[str, NDArray[np.float32]]:
    """Other float initializers in use; those of linears under their parameter's name and turned to [out, in]."""
    found: dict[str, NDArray[np.float32]] = {}
    others = file.used - explained - {name for name, _ in plain.values()}
    for name, tensor in file.initializers.items():
        if name in others and tensor.data_type == TensorProto.FLOAT:
            found[name] = file.floats(name)
    for parameter, (name, turned) in plain.items():
        found[parameter] = file.floats(name).T if turned else file.floats(name)
    return found


def unexplained(file: OnnxFile, explained: set[str]) -> Iterator[str]:
    """Stored numbers of the model that nothing uses, and integers that no known multiplication uses."""
    for name, tensor in file.initializers.items():
        if tensor.data_type not in (*BITS, TensorProto.FLOAT):
            continue  # shapes and axes
        if name not in file.used:
            yield f"{name}: stored, but no output depends on it"
        elif tensor.data_type in BITS and name not in explained:
            users = ", ".join(sorted({n.op_type for n in file.consumers.get(name, [])}))
            yield f"{name}: integers used by {users}, in a way that the reader does not know"
