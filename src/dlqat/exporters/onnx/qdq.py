# SPDX-License-Identifier: Apache-2.0
"""ONNX with nothing but standard operators: codes behind DequantizeLinear, KV cache as inputs and outputs.

Every weight leaf stands in the file as

    PATH.codes         INT4 (3-bit codes too), INT8, or INT2 at opset 25      [K, N]: inputs, outputs
    PATH.scales        float32 [K / group, N], or [N] for one scale per output
    PATH.zero_points   as the codes, shaped as the scales; absent on a symmetric grid
    PATH.bias          float32 [N], if there is one
    PATH/DequantizeLinear -> PATH/MatMul (-> PATH/Add)

PATH is the leaf's, or joins those of several that were merged, columns one after the other (merge.py: q, k, v and
gate, up). ONNX Runtime fuses each pair into MatMulNBits when it loads the file: blocks along axis 0 of [K, N] is the one
layout for which it does (docs/onnx.md). Any other runtime reads plain ONNX.

The embedding's rows are looked up among the *codes* (columns of [K, N], one per token) and only those are
dequantized. That layout is the head's, so a tied head and the embedding are the same bytes of the data file. Gather
takes no type below 8 bits in ONNX Runtime, so an embedding of fewer bits rides in INT8.

Opset 23 is the lowest that has Attention, RotaryEmbedding and RMSNormalization as single operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
from torch import Tensor

from dlqat.architecture import EMBEDDING, Decoder
from dlqat.exporters.builder import Attention, Linear
from dlqat.exporters.merge import merge
from dlqat.exporters.onnx.graph import OnnxGraph
from dlqat.exporters.onnx.io import Io, capped, cut, save, split
from dlqat.exporters.onnx.positions import Positions
from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized


class Product(Protocol):
    """Another way to multiply with a leaf (web.py)."""

    def supports(self, leaf: Quantized) -> str | None: ...
    def describe(self, leaf: Quantized) -> str: ...
    def multiply(self, g: OnnxGraph, name: str, x: ir.Value, leaf: Quantized) -> ir.Value: ...


@dataclass(frozen=True)
class Storage:
    """`storage.Storage` of the standard form and, with `product`, of the web form."""

    product: Product | None = None

    def supports(self, name: str, weight: Leaf) -> str | None:
        if self.product is None or name == EMBEDDING or isinstance(weight, Tensor):
            return None
        return self.product.supports(weight)

    def describe(self, name: str, weight: Leaf) -> str:
        if isinstance(weight, Tensor):
            return "float32"
        if self.product is not None and name != EMBEDDING:
            return self.product.describe(weight)
        bits = 8 if name == EMBEDDING else weight.grid.container
        return f"INT{bits} DequantizeLinear, {'Gather of codes' if name == EMBEDDING else 'MatMul'}"


class Qdq:
    """`builder.Builder` for the standard form. `product`: how it multiplies, if not by DequantizeLinear and MatMul."""

    def __init__(self, facts: Decoder, folder: Path, product: Product | None = None) -> None:
        self.opset, self.product = 23, product
        self.graph = OnnxGraph(folder)
        self.io = Io(self.graph, facts, positions=True)
        self.positions = Positions(self.io)

    def embed(self, name: str, table: Leaf) -> ir.Value:
        g, ids = self.graph, self.io.rows.ids
        if isinstance(table, Tensor):
            return g.op("Gather", f"{name}/Gather", [g.tensor(f"{name}.weight", table.numpy()), ids])
        codes, scales, *zero_points = self._stored(name, table, bits=8)
        axis = 0 if table.grid.group_size is None else 1
        rows = [g.op("Gather", f"{name}/Gather", [codes, ids], {"axis": 1})]
        for what, value in zip(("scales", "zero_points"), (scales, *zero_points), strict=False):
            row = g.op("Gather", f"{name}/Gather.{what}", [value, ids], {"axis": axis})
            if axis == 0:
                row = g.op("Unsqueeze", f"{name}/Unsqueeze.{what}", [row, g.integers([0])])
            rows.append(row)
        block = table.grid.group_size or table.codes.shape[1]
        y = g.op("DequantizeLinear", f"{name}/DequantizeLinear", rows, {"axis": 0, "block_size": block})
        return g.op("Transpose", f"{name}/Transpose", [y], {"perm": [1, 2, 0]})

    def linears(self, x: ir.Value, layers: Sequence[Linear]) -> tuple[ir.Value, ...]:
        if (merged := merge(layers)) is None:
            return tuple(self._linear(x, layer) for layer in layers)
        return split(self.graph, self._linear(x, merged), merged, layers)

    def take(self, name: str, x: ir.Value, labels: Tensor, bias: Tensor | None) -> ir.Value:
        g = self.graph
        y = g.op("Gather", f"{name}/Gather", [x, g.tensor(name, labels.numpy().astype(np.int32))], {"axis": 2})
        return y if bias is None else self._bias(name.removesuffix(".labels"), y, bias)

    def split(self, name: str, x: ir.Value, sizes: Sequence[int]) -> tuple[ir.Value, ...]:
        return cut(self.graph, name, x, sizes)

    def rms_norm(self, name: str, x: ir.Value, weight: Tensor, eps: float, heads: int = 1) -> ir.Value:
        g, gamma = self.graph, self.graph.tensor(f"{name}.weight", weight.numpy())
        attributes = {"axis": -1, "epsilon": eps}
        if heads == 1:
            return g.op("RMSNormalization", name, [x, gamma], attributes)
        x = g.op("Reshape", f"{name}/split", [x, g.integers([0, 0, heads, -1])])
        normed = g.op("RMSNormalization", name, [x, gamma], attributes)
        return g.op("Reshape", f"{name}/join", [normed, g.integers([0, 0, -1])])

    def add(self, name: str, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.graph.op("Add", name, [a, b])

    def scale(self, name: str, x: ir.Value, factor: float) -> ir.Value:
        return self.graph.op("Mul", name, [x, self.graph.tensor(f"{name}.factor", np.array(factor, np.float32))])

    def cap(self, name: str, x: ir.Value, limit: float) -> ir.Value:
        return capped(self.graph, name, x, limit)

    def gated_silu(self, name: str, gate: ir.Value, up: ir.Value) -> ir.Value:
        g = self.graph
        silu = g.op("Mul", f"{name}/silu", [gate, g.op("Sigmoid", f"{name}/sigmoid", [gate])])
        return g.op("Mul", name, [silu, up])

    def gated_gelu(self, name: str, gate: ir.Value, up: ir.Value) -> ir.Value:
        g = self.graph
        return g.op("Mul", name, [g.op("Gelu", f"{name}/gelu", [gate], {"approximate": "tanh"}), up])

    def attention(self, name: str, spec: Attention, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        g = self.graph
        if spec.rope is not None:
            rope, turned = self.positions.cos_sin(spec.rope), self.io.facts.turned(spec.rope)
            part = {} if turned == spec.head_dim else {"rotary_embedding_dim": turned}
            q = g.op("RotaryEmbedding", f"{name}/q_rope", [q, *rope], {"num_heads": spec.heads, **part})
            k = g.op("RotaryEmbedding", f"{name}/k_rope", [k, *rope], {"num_heads": spec.kv_heads, **part})
        y = ir.Value(name=f"{name}:y")
        heads = {"q_num_heads": spec.heads, "kv_num_heads": spec.kv_heads, "scale": spec.scale}
        heads |= {} if spec.cap is None else {"softcap": spec.cap}
        inputs = [q, k, v, self.positions.visible(spec.window), *self.io.past[spec.layer]]
        g.ops("Attention", name, inputs, heads, outputs=[y, *self.io.present[spec.layer]])
        return y

    def select(self, name: str, x: ir.Value) -> ir.Value:
        return self.io.rows.select(name, x)

    def output(self, logits: ir.Value) -> None:
        self.io.output(logits)

    def save(self, metadata: dict[str, str]) -> None:
        """Write the model files; the tensors are on disk already."""
        save(self.graph, self.opset, metadata)

    def _linear(self, x: ir.Value, layer: Linear) -> ir.Value:
        g, name, weight = self.graph, layer.name, layer.weight
        if isinstance(weight, Tensor):
            y = g.op("MatMul", f"{name}/MatMul", [x, g.tensor(f"{name}.weight", weight.numpy().T)])
        elif self.product is not None:
            y = self.product.multiply(g, name, x, weight)
        else:
            group = weight.grid.group_size
            layout = {"axis": 1} if group is None else {"axis": 0, "block_size": group}
            stored = self._stored(name, weight, weight.grid.container)
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
