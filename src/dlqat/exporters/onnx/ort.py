# SPDX-License-Identifier: Apache-2.0
"""ONNX with ONNX Runtime's own operators (domain com.microsoft): the same integers, laid out as its kernels read them.

A weight leaf, or several leaves of one input that were merged into one multiplication, is a node NAME/MatMulNBits:

    NAME               the leaf's path; of merged leaves, in the order of the rows, as merge.py joins their paths
    NAME.codes         uint8 [N, blocks, block_size * bits / 8], codes + 2^(bits-1), packed along the inputs,
                       the first code in the lowest bits; bits is the node's attribute (3-bit codes: bits = 4)
    NAME.scales        float32 [N, blocks]; one scale per output is repeated for each of its blocks, which is exact;
                       there the last block of a row may be filled up with codes that multiply nothing
    NAME.zero_points   uint8 [N, ceil(blocks * bits / 8)], zero-points + 2^(bits-1), packed like the codes; absent on
                       a symmetric grid: MatMulNBits' default is 2^(bits-1)
    NAME.bias          float32 [N], if there is one

Leaves are merged as merge.py says: q, k, v and gate, up. GroupQueryAttention reads the merged q, k, v as they are.
The embedding is NAME/GatherBlockQuantized on NAME.codes [N, blocks * block_size * bits / 8] with the same scales: with
a tied head both tensors are the same regions of the data file. What a last block was filled up with is cut off by
NAME/Slice.

accuracy_level 4 lets a kernel round its input to int8 per block of a row, which is what makes it fast on CPUs; 0
keeps float32 and is for proofs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dlqat import rope
from dlqat.architecture import EMBEDDING, Decoder
from dlqat.exporters.builder import Attention, Linear
from dlqat.exporters.merge import merge
from dlqat.exporters.onnx.graph import MS, Array, Attribute, OnnxGraph, pack
from dlqat.exporters.onnx.io import Io, capped, cut, save, split
from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized

CHANNEL_BLOCK = 128
"""Inputs per block of a row that has one scale: 8 % faster a token than 64 (docs/onnx.md), even where it is filled up."""
HEAD_SIZES = 16
"""GroupQueryAttention that rotates takes multiples of it and no other head size (tried: 2 to 512)."""


class Storage:
    """`storage.Storage`: every grid."""

    def supports(self, name: str, weight: Leaf) -> str | None:
        return None

    def describe(self, name: str, weight: Leaf) -> str:
        if isinstance(weight, Tensor):
            return "float32"
        node = "GatherBlockQuantized" if name == EMBEDDING else "MatMulNBits"
        return f"{node}, {weight.grid.container} bits, blocks of {block_size(weight)}"


class Ort:
    """`builder.Builder` for the form of ONNX Runtime. `positions`: how many the rotary tables hold."""

    opset = 21
    """Nothing but Shape with `start` (15), Split, Slice and the like is taken from ONNX itself."""

    def __init__(self, facts: Decoder, folder: Path, positions: int, *, accuracy_level: int = 4) -> None:
        self.graph = OnnxGraph(folder)
        self.io = Io(self.graph, facts, positions=False)
        self._adds: dict[ir.Value, tuple[str, ir.Value, ir.Value]] = {}
        self.facts, self.positions, self.accuracy_level = facts, positions, accuracy_level
        self._lengths: list[ir.Value] = []
        self._ropes: dict[str, list[ir.Value]] = {}

    def embed(self, name: str, table: Leaf) -> ir.Value:
        g = self.graph
        if isinstance(table, Tensor):
            return g.op("Gather", f"{name}/Gather", [g.tensor(f"{name}.weight", table.numpy()), self.io.rows.ids])
        stored, layout = blocks(table)
        stored["codes"] = stored["codes"].reshape(len(stored["codes"]), -1)
        codes, *rest = (g.tensor(f"{name}.{what}", array) for what, array in stored.items())
        attributes = {"bits": layout["bits"], "block_size": layout["block_size"], "gather_axis": 0, "quantize_axis": 1}
        inputs = [codes, self.io.rows.ids, *rest]
        y = g.op("GatherBlockQuantized", f"{name}/GatherBlockQuantized", inputs, attributes, MS)
        if (k := table.codes.shape[1]) % block_size(table) == 0:
            return y
        return g.op("Slice", f"{name}/Slice", [y, g.integers([0]), g.integers([k]), g.integers([2])])

    def linears(self, x: ir.Value, layers: Sequence[Linear]) -> tuple[ir.Value, ...]:
        x = self._now(x)
        if (merged := merge(layers)) is None:
            return tuple(self._linear(x, layer) for layer in layers)
        return split(self.graph, self._linear(x, merged), merged, layers)

    def take(self, name: str, x: ir.Value, labels: Tensor, bias: Tensor | None) -> ir.Value:
        g, path = self.graph, name.removesuffix(".labels")
        y = g.op("Gather", f"{name}/Gather", [self._now(x), g.tensor(name, labels.numpy())], {"axis": 2})
        return y if bias is None else g.op("Add", f"{path}/Add", [y, g.tensor(f"{path}.bias", bias.numpy())])

    def split(self, name: str, x: ir.Value, sizes: Sequence[int]) -> tuple[ir.Value, ...]:
        return cut(self.graph, name, self._now(x), sizes)

    def rms_norm(self, name: str, x: ir.Value, weight: Tensor, eps: float, heads: int = 1) -> ir.Value:
        g, gamma = self.graph, self.graph.tensor(f"{name}.weight", weight.numpy())
        if x in self._adds:  # the sum and its norm in one pass
            _, a, b = self._adds.pop(x)
            y = ir.Value(name=f"{name}:y")
            outputs = [y, None, None, x]
            g.ops("SkipSimplifiedLayerNormalization", name, [a, b, gamma], {"epsilon": eps}, MS, outputs=outputs)
            return y
        attributes = {"axis": -1, "epsilon": eps, "stash_type": 1}
        if heads == 1:
            return g.op("SimplifiedLayerNormalization", name, [x, gamma], attributes)
        x = g.op("Reshape", f"{name}/split", [x, g.integers([0, 0, heads, -1])])
        y = g.op("SimplifiedLayerNormalization", name, [x, gamma], attributes)
        return g.op("Reshape", f"{name}/join", [y, g.integers([0, 0, -1])])

    def add(self, name: str, a: ir.Value, b: ir.Value) -> ir.Value:
        y = ir.Value(name=f"{name}:y")
        self._adds[y] = name, self._now(a), self._now(b)  # waits for a norm that takes it in
        return y

    def scale(self, name: str, x: ir.Value, factor: float) -> ir.Value:
        g = self.graph
        return g.op("Mul", name, [self._now(x), g.tensor(f"{name}.factor", np.array(factor, np.float32))])

    def cap(self, name: str, x: ir.Value, limit: float) -> ir.Value:
        return capped(self.graph, name, self._now(x), limit)

    def gated_silu(self, name: str, gate: ir.Value, up: ir.Value) -> ir.Value:
        g = self.graph
        silu = g.op("QuickGelu", f"{name}/silu", [self._now(gate)], {"alpha": 1.0}, MS)
        return g.op("Mul", name, [silu, self._now(up)])

    def gated_gelu(self, name: str, gate: ir.Value, up: ir.Value) -> ir.Value:
        g = self.graph
        gelu = g.op("Gelu", f"{name}/gelu", [self._now(gate)], {"approximate": "tanh"})
        return g.op("Mul", name, [gelu, self._now(up)])

    def attention(self, name: str, spec: Attention, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        attributes = {
            "num_heads": spec.heads,
            "kv_num_heads": spec.kv_heads,
            "scale": spec.scale,
            "do_rotary": int(spec.rope is not None),
            "local_window_size": -1 if spec.window is None else spec.window,
            **({} if spec.cap is None else {"softcap": spec.cap}),
        }
        qkv = packed(q, k, v) or [self._now(x) for x in (q, k, v)]
        y = ir.Value(name=f"{name}:y")
        inputs = [*qkv, *self.io.past[spec.layer], *self._row_lengths(), *self._tables(spec.rope)]
        outputs = [y, *self.io.present[spec.layer]]
        self.graph.ops("GroupQueryAttention", name, inputs, attributes, MS, outputs=outputs)
        return y

    def select(self, name: str, x: ir.Value) -> ir.Value:
        return self.io.rows.select(name, self._now(x))

    def output(self, logits: ir.Value) -> None:
        self.io.output(self._now(logits))

    def save(self, metadata: dict[str, str]) -> None:
        """Write the model files; the tensors are on disk already."""
        save(self.graph, self.opset, metadata)

    def _linear(self, x: ir.Value, layer: Linear) -> ir.Value:
        g, name, weight = self.graph, layer.name, layer.weight
        bias = None if layer.bias is None else g.tensor(f"{name}.bias", layer.bias.numpy())
        if isinstance(weight, Tensor):
            y = g.op("MatMul", f"{name}/MatMul", [x, g.tensor(f"{name}.weight", weight.numpy().T)])
            return y if bias is None else g.op("Add", f"{name}/Add", [y, bias])
        stored, layout = blocks(weight)
        tensors = [g.tensor(f"{name}.{what}", array) for what, array in stored.items()]
        inputs = [x, *tensors, *[None] * (3 - len(tensors)), None, bias]
        layout["accuracy_level"] = self.accuracy_level
        return g.op("MatMulNBits", f"{name}/MatMulNBits", inputs if bias else inputs[: 1 + len(tensors)], layout, MS)

    def _now(self, x: ir.Value) -> ir.Value:
        """x, with the sum behind it written out if no norm has taken it in."""
        if x in self._adds:
            name, a, b = self._adds.pop(x)
            self.graph.ops("Add", name, [a, b], outputs=[x])
        return x

    def _row_lengths(self) -> list[ir.Value]:
        """seqlens_k int32 [batch] (keys - 1), total_sequence_length int32 scalar: the same in all layers."""
        if self._lengths:
            return self._lengths
        g, int32 = self.graph, {"to": int(ir.DataType.INT32)}
        keys = g.op("ReduceSum", "lengths/keys", [self.io.mask, g.integers([1])], {"keepdims": 0})
        last = g.op("Sub", "lengths/last", [keys, g.integers([1])])
        total = g.op("Shape", "lengths/shape", [self.io.mask], {"start": 1})
        total = g.op("Squeeze", "lengths/scalar", [total])
        self._lengths = [
            g.op("Cast", "seqlens_k", [last], int32),
            g.op("Cast", "total_sequence_length", [total], int32),
        ]
        return self._lengths

    def _tables(self, name: str | None) -> list[ir.Value]:
        """cos and sin float32 [positions, ..] of a rope, once; nothing for a layer that does not rotate."""
        if name is None:
            return []
        if name not in self._ropes:
            tables = zip(("cos", "sin"), self.facts.rope_tables(self.positions, name), strict=True)
            self._ropes[name] = [self.graph.tensor(rope.stored(name, n), t) for n, t in tables]
        return self._ropes[name]


def packed(q: ir.Value, k: ir.Value, v: ir.Value) -> list[ir.Value | None] | None:
    """The merged projection of which q, k and v are the parts, in GroupQueryAttention's packed form; else None."""
    node = q.producer()
    if node is None or node.op_type != "Split" or list(node.outputs) != [q, k, v]:
        return None
    return [node.inputs[0], None, None]


def blocks(leaf: Quantized) -> tuple[dict[str, Array], dict[str, Attribute]]:
    """MatMulNBits' tensors (codes, scales and maybe zero_points, in this order) and its attributes."""
    (n, k), bits, size = leaf.codes.shape, leaf.grid.container, block_size(leaf)
    count = -(-k // size)
    codes, scales, zero_points = leaf.codes, leaf.scales, leaf.zero_points
    if leaf.grid.group_size is None:
        codes = functional.pad(codes, (0, count * size - k))
        scales = scales.expand(n, count)
        zero_points = None if zero_points is None else zero_points.expand(n, count)
    packed_codes = pack(unsigned(codes, bits).reshape(n, count, size), bits)
    stored: dict[str, Array] = {"codes": packed_codes, "scales": scales.numpy()}
    if zero_points is not None:
        stored["zero_points"] = pack(unsigned(zero_points, bits), bits)
    return stored, {"K": k, "N": n, "bits": bits, "block_size": size}


def block_size(leaf: Quantized) -> int:
    """The grid's group; for one scale per output CHANNEL_BLOCK, or the power of two that holds a short row."""
    return leaf.grid.group_size or min(CHANNEL_BLOCK, max(16, 1 << (leaf.codes.shape[1] - 1).bit_length()))


def unsigned(codes: Tensor, bits: int) -> NDArray[np.uint8]:
    """codes + 2^(bits-1) of a signed container, as uint8."""
    return codes.contiguous().numpy().view(np.uint8) + np.uint8(1 << (bits - 1)) & np.uint8((1 << bits) - 1)
