# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of an ONNX decoder, by the names that onnxruntime-genai and transformers.js share.

    input_ids, attention_mask, (position_ids,) past_key_values.N.key, past_key_values.N.value
    -> logits, present.N.key, present.N.value

and one input that need not be fed: num_logits_to_keep (transformers' logits_to_keep), 0 by default: the logits of
all positions; n: of the last n of each row that are not padding. A prompt needs one row of them, and on a small model with a large vocabulary the others are a fifth of
its time and nearly all of its memory. So there is a second file, GENERATE, with the same nodes on the same data file,
in which that number is the constant 1: onnxruntime-genai cannot feed it, and wants the shape of the logits declared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dlqat.architecture import Decoder
from dlqat.exporters.builder import Linear
from dlqat.exporters.merge import width
from dlqat.exporters.onnx.graph import OnnxGraph
from dlqat.exporters.onnx.rows import BatchRows

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
# transformers.js makes its empty cache from these names: without "batch_size" it would get a batch of 0.
BATCH, STEP, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
PAST_NAME, PRESENT_NAME = "past_key_values.{}.{}", "present.{}.{}"
KEEP = "num_logits_to_keep"
GENERATE = "model_generate.onnx"
CACHE = ("key", "value")


class Io:
    """The inputs, declared; the outputs, waiting for their nodes."""

    def __init__(self, graph: OnnxGraph, facts: Decoder, *, positions: bool) -> None:
        self.graph, self.facts = graph, facts
        ids = graph.input("input_ids", INT64, [BATCH, STEP])
        self.mask = graph.input("attention_mask", INT64, [BATCH, TOTAL])
        self._positions = graph.input("position_ids", INT64, [BATCH, STEP]) if positions else None
        layers = range(facts.layers)
        self.past = [[graph.input(PAST_NAME.format(i, x), FLOAT, self._cache(PAST)) for x in CACHE] for i in layers]
        self.present = [[ir.Value(name=PRESENT_NAME.format(i, x)) for x in CACHE] for i in layers]
        keep = graph.optional(KEEP, np.array(0, np.int64))
        self.rows = BatchRows(graph, ids, self.mask, keep, together=not positions)

    @property
    def positions(self) -> ir.Value:
        assert self._positions is not None
        return self._positions

    def output(self, logits: ir.Value) -> None:
        self.graph.output(logits, "logits", [BATCH, "num_logits", self.facts.vocab_size])
        for keys_and_values in self.present:
            for value in keys_and_values:
                self.graph.output(value, str(value.name), self._cache(TOTAL))

    def _cache(self, length: str) -> list[int | str]:
        return [BATCH, self.facts.kv_heads, length, self.facts.head_dim]


def split(graph: OnnxGraph, y: ir.Value, merged: Linear, layers: Sequence[Linear]) -> tuple[ir.Value, ...]:
    """The outputs of `layers` out of `y`, the output of their `merged` multiplication."""
    return cut(graph, f"{merged.name}/Split", y, [width(layer.weight) for layer in layers])


def cut(graph: OnnxGraph, name: str, y: ir.Value, sizes: Sequence[int]) -> tuple[ir.Value, ...]:
    """`y` in parts of these sizes."""
    return tuple(graph.ops("Split", name, [y, graph.integers(list(sizes))], {"axis": -1}, outputs=len(sizes)))


def capped(graph: OnnxGraph, name: str, x: ir.Value, limit: float) -> ir.Value:
    """limit * tanh(x / limit)."""
    by = graph.tensor(f"{name}.limit", np.array(limit, np.float32))
    y = graph.op("Tanh", f"{name}/Tanh", [graph.op("Div", f"{name}/Div", [x, by])])
    return graph.op("Mul", f"{name}/Mul", [y, by])


def save(graph: OnnxGraph, opset: int, metadata: Mapping[str, str]) -> None:
    """Write both files: all logits, and the last ones only."""
    model = graph.save(opset, metadata)
    inputs = [i for i in model.graph.input if i.name != KEEP]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    (keep,) = (t for t in model.graph.initializer if t.name == KEEP)
    keep.raw_data = np.array(1, np.int64).tobytes()
    (logits,) = (o for o in model.graph.output if o.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_value = 1
    (graph.path.parent / GENERATE).write_bytes(model.SerializeToString(deterministic=True))
