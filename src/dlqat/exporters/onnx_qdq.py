# SPDX-License-Identifier: Apache-2.0
"""ONNX with nothing but standard operators: codes behind DequantizeLinear, KV cache as inputs and outputs.

Every weight leaf stands in the file as

    PATH.codes         INT4 (3-bit codes too), INT8, or INT2 at opset 25      [K, N]: inputs, outputs
    PATH.scales        float32 [K / group, N], or [N] for one scale per output
    PATH.zero_points   as the codes, shaped as the scales; absent on a symmetric grid
    PATH/DequantizeLinear -> PATH/MatMul (-> PATH/Add)

and ONNX Runtime fuses the pair into MatMulNBits when it loads the file: blocks along axis 0 of [K, N] is the one
layout for which it does (docs/onnx.md). Any other runtime reads plain ONNX.

The embedding's rows are looked up among the *codes* (columns of [K, N], one per token) and only those are
dequantized. That layout is the head's, so a tied head and the embedding are the same bytes of the data file. Gather
takes no type below 8 bits in ONNX Runtime, so an embedding of fewer bits rides in INT8.

Opset 23 is the lowest that has Attention, RotaryEmbedding and RMSNormalization as single operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor

from dlqat.architecture import Decoder, inverse_frequencies
from dlqat.exporters.builder import Attention, Leaf, Linear
from dlqat.exporters.onnx_graph import Graph
from dlqat.exporters.onnx_io import Io, save
from dlqat.folded import Quantized


class Qdq:
    """`builder.Builder` for the standard form."""

    form = "qdq"

    def __init__(self, facts: Decoder, folder: Path) -> None:
        self.facts, self.opset = facts, 23
        self.graph = Graph(folder)
        self.io = Io(self.graph, facts, positions=True)
        self._rope: tuple[ir.Value, ir.Value] | None = None
        self._at: tuple[ir.Value, ir.Value] | None = None
        self._visible: dict[int | None, ir.Value] = {}

    def supports(self, name: str, weight: Leaf) -> str | None:
        del name, weight
        return None

    def embed(self, name: str, table: Leaf) -> ir.Value:
        g, ids = self.graph, self.io.ids
        if isinstance(table, Tensor):
            return g.op("Gather", f"{name}/Gather", [g.tensor(f"{name}.weight", table.numpy()), ids])
        codes, scales, *zero_points = self._stored(name, table, bits=8)
        axis = 0 if table.grid.group_size is None else 1
        rows = [g.op("Gather", f"{name}/Gather", [codes, ids], {"axis": 1})]
        for what, value in zip(("scales", "zero_points"), (scales, *zero_points), strict=False):
            row = g.op("Gather", f"{name}/Gather.{what}", [value, ids], {"axis": axis})
            if axis == 0:
                row = g.op("Unsqueeze", f"{name}/Unsqueeze.{what}", [row, g.ints("axes.0", [0])])
            rows.append(row)
        block = table.grid.group_size or table.codes.shape[1]
        y = g.op("DequantizeLinear", f"{name}/DequantizeLinear", rows, {"axis": 0, "block_size": block})
        return g.op("Transpose", f"{name}/Transpose", [y], {"perm": [1, 2, 0]})

    def linears(self, x: ir.Value, layers: Sequence[Linear]) -> tuple[ir.Value, ...]:
        return tuple(self._linear(x, layer) for layer in layers)

    def take(self, name: str, x: ir.Value, labels: Tensor, bias: Tensor | None) -> ir.Value:
        g = self.graph
        y = g.op("Gather", f"{name}/Gather", [x, g.tensor(name, labels.numpy().astype(np.int32))], {"axis": 2})
        return y if bias is None else self._bias(name.removesuffix(".labels"), y, bias)

    def rms_norm(self, name: str, x: ir.Value, weight: Tensor, eps: float, heads: int = 1) -> ir.Value:
        g, gamma = self.graph, self.graph.tensor(f"{name}.weight", weight.numpy())
        attributes = {"axis": -1, "epsilon": eps}
        if heads == 1:
            return g.op("RMSNormalization", name, [x, gamma], attributes)
        x = g.op("Reshape", f"{name}/split", [x, g.ints(f"split.{heads}", [0, 0, heads, -1])])
        normed = g.op("RMSNormalization", name, [x, gamma], attributes)
        return g.op("Reshape", f"{name}/join", [normed, g.ints("join", [0, 0, -1])])

    def add(self, name: str, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.graph.op("Add", name, [a, b])

    def gated_silu(self, name: str, gate: ir.Value, up: ir.Value) -> ir.Value:
        g = self.graph
        silu = g.op("Mul", f"{name}/silu", [gate, g.op("Sigmoid", f"{name}/sigmoid", [gate])])
        return g.op("Mul", name, [silu, up])

    def attention(self, name: str, spec: Attention, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        g, rope = self.graph, self._cos_sin()
        q = g.op("RotaryEmbedding", f"{name}/q_rope", [q, *rope], {"num_heads": spec.heads})
        k = g.op("RotaryEmbedding", f"{name}/k_rope", [k, *rope], {"num_heads": spec.kv_heads})
        y = ir.Value(name=f"{name}:y")
        heads = {"q_num_heads": spec.heads, "kv_num_heads": spec.kv_heads, "scale": spec.scale}
        inputs = [q, k, v, self._mask(spec.window), *self.io.past[spec.layer]]
        g.ops("Attention", name, inputs, heads, outputs=[y, *self.io.present[spec.layer]])
        return y

    def select(self, name: str, x: ir.Value) -> ir.Value:
        return self.io.select(name, x)

    def output(self, logits: ir.Value) -> None:
        self.io.output(logits)

    def save(self, metadata: dict[str, str]) -> None:
        """Write the model files; the tensors are on disk already."""
        save(self.graph, self.opset, metadata)

    def _linear(self, x: ir.Value, layer: Linear) -> ir.Value:
        g, name, weight = self.graph, layer.name, layer.weight
        if isinstance(weight, Tensor):
            w = g.tensor(f"{name}.weight", weight.numpy().T)
        else:
            group = weight.grid.group_size
            layout = {"axis": 1} if group is None else {"axis": 0, "block_size": group}
            stored = self._stored(name, weight, weight.grid.bits)
            w = g.op("DequantizeLinear", f"{name}/DequantizeLinear", stored, layout)
        y = g.op("MatMul", f"{name}/MatMul", [x, w])
        return y if layer.bias is None else self._bias(name, y, layer.bias)

    def _bias(self, name: str, y: ir.Value, bias: Tensor) -> ir.Value:
        return self.graph.op("Add", f"{name}/Add", [y, self.graph.tensor(f"{name}.bias", bias.numpy())])

    def _stored(self, name: str, leaf: Quantized, bits: int) -> list[ir.Value]:
        """codes, scales and, if there are any, zero-points of a leaf, as constants in a container of `bits`."""
        g = self.graph
        if bits == 2:
            self.opset = 25
        per_channel = leaf.grid.group_size is None

        def turned(t: Tensor) -> np.ndarray:
            return t[:, 0].numpy() if per_channel else t.numpy().T

        values = [
            g.codes(f"{name}.codes", np.ascontiguousarray(leaf.codes.numpy().T), bits),
            g.tensor(f"{name}.scales", turned(leaf.scales)),
        ]
        if leaf.zero_points is not None:
            values.append(g.codes(f"{name}.zero_points", np.ascontiguousarray(turned(leaf.zero_points)), bits))
        return values

    def _cos_sin(self) -> tuple[ir.Value, ir.Value]:
        """cos and sin [batch, sequence, head_dim / 2] of this step's positions, computed once per step.

        From the frequencies, not from a table: no limit on the context, and no table of 67 MB for Llama 3.
        """
        if self._rope is None:
            g = self.graph
            at = g.op("Cast", "rope/positions", [self.io.positions], {"to": int(ir.DataType.FLOAT)})
            at = g.op("Unsqueeze", "rope/column", [at, g.ints("axes.2", [2])])
            angles = g.op("Mul", "rope/angles", [at, g.tensor("rope.frequencies", inverse_frequencies(self.facts))])
            self._rope = g.op("Cos", "rope/cos", [angles]), g.op("Sin", "rope/sin", [angles])
        return self._rope

    def _slots(self) -> tuple[ir.Value, ir.Value]:
        """Where the keys lie in the cache, int64 [total], and this step's queries, [sequence, 1]."""
        g, zero, one = self.graph, self.graph.int("zero", 0), self.graph.int("one", 1)
        if self._at is None:
            step, total = (
                g.op("Squeeze", f"slots/{n}", [g.op("Shape", f"slots/{n}.1d", [x], {"start": 1})])
                for n, x in (("step", self.io.ids), ("total", self.io.mask))
            )
            past = g.op("Sub", "slots/past", [total, step])
            query = g.op("Range", "slots/query.1d", [past, total, one])
            query = g.op("Unsqueeze", "slots/query", [query, g.ints("axes.1", [1])])
            self._at = g.op("Range", "slots/key", [zero, total, one]), query
        return self._at

    def _mask(self, window: int | None) -> ir.Value:
        """bool [batch, 1, sequence, total]: what a query sees, built once for all layers of one window.

        A padded query sees itself, so that no row is empty (a softmax over nothing is NaN, and NaN spreads).
        """
        if window in self._visible:
            return self._visible[window]
        g, at = self.graph, f"mask.{window or 'full'}"
        key, query = self._slots()
        seen = g.op("LessOrEqual", f"{at}/causal", [key, query])
        if window is not None:
            first = g.op("Sub", f"{at}/first", [query, g.int(f"{at}.window", window)])
            seen = g.op("And", f"{at}/window", [seen, g.op("Greater", f"{at}/late", [key, first])])
        real = g.op("Cast", f"{at}/real", [self.io.mask], {"to": int(ir.DataType.BOOL)})
        real = g.op("Unsqueeze", f"{at}/row", [real, g.ints("axes.1.2", [1, 2])])
        real = g.op("Or", f"{at}/itself", [real, g.op("Equal", f"{at}/diagonal", [key, query])])
        self._visible[window] = g.op("And", at, [real, seen])
        return self._visible[window]
