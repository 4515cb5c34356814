# SPDX-License-Identifier: Apache-2.0
"""What a worker without an ONNX parser must know of a decoder graph: inputs, cache shapes, files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlqat import plain_file
from dlqat.devices.device import DeviceFailure, Setting


def spec(program: Path) -> dict[str, Any]:
    """Names, types and shapes as JSON. DeviceFailure if it is no decoder with a float32 cache."""
    import onnx

    graph = _graph(program)
    inputs = {i.name: i.type.tensor_type for i in graph.input}
    past = {n: t for n, t in inputs.items() if n.startswith("past_key_values.")}
    if odd := [n for n, t in past.items() if t.elem_type != onnx.TensorProto.FLOAT]:
        raise DeviceFailure(f"{program.name}: the cache {odd[0]} is not float32, which this device feeds")
    logits = next((o for o in graph.output if o.name == "logits"), None)
    if logits is None:
        raise DeviceFailure(f"{program.name} has no output named logits")
    tensors = [*graph.initializer]
    beside = sorted({e.value for t in tensors for e in t.external_data if e.key == "location"})
    for name in beside:  # they are served to a page, and pushed to a phone
        if (reason := plain_file.inside_fault(program.parent, name)) is not None:
            raise DeviceFailure(f"{program.name} names its data {name!r}, which {reason}")
    return {
        "file": str(program.resolve()),
        "name": program.name,
        "inputs": sorted({*inputs, *(t.name for t in tensors if t.name == "num_logits_to_keep")}),
        "past": [
            {"name": n, "heads": t.shape.dim[1].dim_value, "width": t.shape.dim[3].dim_value} for n, t in past.items()
        ],
        "vocab": logits.type.tensor_type.shape.dim[-1].dim_value or 2**31,
        "external": beside,
        "operators": sorted({n.op_type for n in graph.node}),
    }


def options(setting: Setting, provider: str) -> dict[str, Any]:
    """SessionOptions of onnxruntime in JavaScript. A setting's own options are session.NAME there."""
    level = "4" if setting.activations == "int8" else "0"
    return {
        "executionProviders": [provider],
        "graphOptimizationLevel": "all" if setting.optimize else "disabled",
        "intraOpNumThreads": setting.threads,
        "interOpNumThreads": 1,
        "logSeverityLevel": 4,
        "extra": {"session": {"qdq_matmulnbits_accuracy_level": level, **dict(setting.options)}},
    }


def shipped_level(program: Path) -> int | None:
    """accuracy_level of the artifact's own MatMulNBits nodes (the largest); None if it has none (the qdq form)."""
    found = [n for n in _graph(program).node if n.op_type == "MatMulNBits"]
    return max((a.i for n in found for a in n.attribute if a.name == "accuracy_level"), default=0) if found else None


def integer_products(program: Path) -> bool:
    """Whether the artifact rounds its linears' inputs by itself and multiplies bytes (the web form)."""
    return any(n.op_type == "MatMulInteger" for n in _graph(program).node)


def _graph(program: Path) -> Any:
    import onnx

    try:
        return onnx.load(str(program), load_external_data=False).graph
    except Exception as error:
        raise DeviceFailure(f"{program} is no ONNX model ({' '.join(str(error).split())[:200]})") from error
