# SPDX-License-Identifier: Apache-2.0
"""exporters.builder.Builder for ExecuTorch on CPUs: XNNPACK for all arithmetic, kernels for lookup, cache, attention.

Weights stand in the file as XNNPACK reads them, every leaf under its path:

    PATH.codes     groups: int4 (2 and 3 bits too), two to a byte, the lower half first, stored as code + 8
                   one scale per row: the same, or int8 as it is
    PATH.scales    groups: bfloat16 [out, in / group]; rows: float32 [out]
    PATH.bias, PATH.weight     float32

The input of every linear with int8 activations is rounded per token when it runs (XNNConvert); linears that read the
same x share that. The embedding is looked up among int8 codes. A tied head of 8 bits multiplies with those very bytes.

XNNPACK has no mean, so a norm takes the mean of the squares as a product with a constant row of 1 / n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlqat import rope
from dlqat.architecture import EMBEDDING, HEAD, Decoder
from dlqat.exporters.builder import Attention, Linear
from dlqat.exporters.executorch.graph import SELECT, TOKENS, PteGraph, Stored, Value
from dlqat.exporters.executorch.storage import rounds
from dlqat.exporters.storage import Leaf
from dlqat.folded import Quantized
from dlqat.recipe import LayerSpec

END = 2**63 - 1
GELU = {"linear": 2 * (2 / math.pi) ** 0.5, "cubic": 2 * (2 / math.pi) ** 0.5 * 0.044715}


class Xnnpack:
    """`builder.Builder` for one step: ids int64 [1, TOKENS] from position int64 [1] on, logits of the last one.

    executorch_graph.whole makes of it the same step with the logits of all.
    """

    def __init__(
        self, facts: Decoder, specs: Mapping[str, LayerSpec], context: int, spool: IO[bytes] | None = None
    ) -> None:
        self.facts, self.specs, self.context = facts, specs, context
        g = self.graph = PteGraph(spool)
        self.ids, self.position, self.logits = Value((1, TOKENS)), Value((1,)), Value(())
        count = g.scalar("aten::sym_size.int", self.ids, 1)
        self.start = g.scalar("aten::_local_scalar_dense", self.position)
        self.end = g.scalar("executorch_prim::add.Scalar", self.start, count)
        self.ropes = {name: self._positions(name) for name in facts.ropes}

    def embed(self, name: str, table: Leaf) -> Value:
        g, shape = self.graph, (1, TOKENS, self.facts.hidden_size)
        if isinstance(table, Tensor):
            weight = g.floats(f"{name}.weight", table.float().numpy())
            return g.kernel("aten::embedding.out", [weight, self.ids, -1, False, False], shape)
        codes = g.integers(f"{name}.codes", table.codes.numpy())
        scales = table.scales.numpy()
        scales = g.floats(f"{name}.scales", scales[:, 0] if table.grid.group_size is None else scales)
        arguments = [codes, scales, None, -128, 127, self.ids]
        return g.kernel("quantized_decomposed::embedding_byte.out", arguments, shape)

    def linears(self, x: Value, layers: Sequence[Linear]) -> tuple[Value, ...]:
        if len(x.shape) == 4:  # heads, as attention leaves them
            x = self._reshape(x, x.shape[2] * x.shape[3])
        rounded: Value | None = None
        results: list[Value] = []
        for layer in layers:
            given = x
            if isinstance(layer.weight, Quantized) and rounds(layer.name, self.specs):
                rounded = rounded or self.graph.xnn("Convert", [x], x.shape, int8=True)
                given = rounded
            results.append(self._linear(given, layer))
        return tuple(results)

    def take(self, name: str, x: Value, labels: Tensor, bias: Tensor | None) -> Value:
        g = self.graph
        picked = g.integers(name, labels.numpy().astype(np.int64))
        y = g.kernel("aten::index_select.out", [x, 2, picked], (*x.shape[:2], len(labels)))
        if bias is None:
            return y
        return g.xnn("Add", [y, g.floats(f"{name.removesuffix('.labels')}.bias", bias.numpy())], y.shape)

    def split(self, name: str, x: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
        ends = list(accumulate(sizes))
        return tuple(self._slice(x, end - size, size) for end, size in zip(ends, sizes, strict=True))

    def rms_norm(self, name: str, x: Value, weight: Tensor, eps: float, heads: int = 1) -> Value:
        g, size = self.graph, x.shape[-1] // heads
        if heads > 1:
            x = self._reshape(x, heads, size)
        mean = g.floats(f"mean.{size}", np.full((1, size), 1 / size, np.float32))
        eps_row = g.floats(f"eps.{eps:g}", np.full(1, eps, np.float32))
        squares = g.xnn("Square", [x], x.shape)
        variance = g.xnn("FullyConnected", [squares, mean, eps_row], (*x.shape[:-1], 1))
        inverse = g.xnn("ReciprocalSquareRoot", [variance], variance.shape)
        unit = g.xnn("Multiply", [x, inverse], x.shape)
        return g.xnn("Multiply", [unit, g.floats(f"{name}.weight", weight.float().numpy())], x.shape)

    def add(self, name: str, a: Value, b: Value) -> Value:
        return self.graph.xnn("Add", [a, b], a.shape)

    def scale(self, name: str, x: Value, factor: float) -> Value:
        return self.graph.xnn("Multiply", [x, self._number(f"{name}.factor", factor)], x.shape)

    def cap(self, name: str, x: Value, limit: float) -> Value:
        raise NotImplementedError(f"{name}: target.plan refuses soft caps")

    def gated_silu(self, name: str, gate: Value, up: Value) -> Value:
        g = self.graph
        silu = g.xnn("Multiply", [gate, g.xnn("Sigmoid", [gate], gate.shape)], gate.shape)
        return g.xnn("Multiply", [silu, up], gate.shape)

    def gated_gelu(self, name: str, gate: Value, up: Value) -> Value:
        """gate * sigmoid(gate (a + b gate^2)) * up: tanh(u) is 2 sigmoid(2 u) - 1, so that is GELU's tanh form."""
        g, shape = self.graph, gate.shape
        a, b = (self._number(f"gelu.{what}", value) for what, value in GELU.items())
        inner = g.xnn("Add", [g.xnn("Multiply", [g.xnn("Square", [gate], shape), b], shape), a], shape)
        sigmoid = g.xnn("Sigmoid", [g.xnn("Multiply", [gate, inner], shape)], shape)
        return g.xnn("Multiply", [g.xnn("Multiply", [gate, sigmoid], shape), up], shape)

    def attention(self, name: str, spec: Attention, q: Value, k: Value, v: Value) -> Value:
        g, start = self.graph, self.start
        q, k = self._heads(q, spec.heads, spec.head_dim), self._heads(k, spec.kv_heads, spec.head_dim)
        if spec.rope is not None:
            q, k = self._rotate(q, spec.rope), self._rotate(k, spec.rope)
        v = self._heads(v, spec.kv_heads, spec.head_dim)
        keys, values = (g.cache((1, self.context, spec.kv_heads, spec.head_dim)) for _ in range(2))
        g.kernel("llama::update_cache.out", [k, keys, start], (1,))
        g.kernel("llama::update_cache.out", [v, values, start], (1,))
        # q, keys, values, start, mask, dropout, causal, scale (its default is head_dim ** -0.5)
        scale = None if spec.plain else spec.scale
        return g.kernel("llama::custom_sdpa.out", [q, keys, values, start, None, 0.0, True, scale], q.shape)

    def select(self, name: str, x: Value) -> Value:
        return self.graph.kernel(SELECT, [x, 1, -1, END, 1], (1, 1, *x.shape[2:]))

    def output(self, logits: Value) -> None:
        self.logits = logits

    def _positions(self, name: str) -> tuple[Value, Value]:
        """The rows of a rope's cos and sin [positions, pairs] for this step, with a dimension for the heads."""

        def rows(what: str, table: NDArray[np.float32]) -> Value:
            stored = self.graph.floats(rope.stored(name, what), table[None, :, None])
            return self.graph.kernel(SELECT, [stored, 1, self.start, self.end, 1], (1, TOKENS, 1, table.shape[1]))

        cos, sin = self.facts.rope_tables(self.context, name)
        return rows("cos", cos), rows("sin", sin)

    def _number(self, name: str, value: float) -> Stored:
        return self.graph.floats(name, np.full(1, value, np.float32))

    def _heads(self, x: Value, heads: int, size: int) -> Value:
        return x if len(x.shape) == 4 else self._reshape(x, heads, size)  # a norm of heads has parted them already

    def _reshape(self, x: Value, *features: int) -> Value:
        shape = (*x.shape[:2], *features)
        # 0: as many as there are
        return self.graph.xnn("StaticReshape", [x], shape, num_dims=len(shape), new_shape=[1, 0, *features])

    def _rotate(self, x: Value, name: str) -> Value:
        """(a, b) -> (a cos - b sin, b cos + a sin) on the halves of every head, or of its first part; the rest stays."""
        g, (cos, sin), turned = self.graph, self.ropes[name], self.facts.turned(name)
        size, rest = turned // 2, x.shape[3] - turned
        a, b = self._slice(x, 0, size), self._slice(x, size, size)
        shape = a.shape
        left = g.xnn("Subtract", [g.xnn("Multiply", [a, cos], shape), g.xnn("Multiply", [b, sin], shape)], shape)
        right = g.xnn("Add", [g.xnn("Multiply", [b, cos], shape), g.xnn("Multiply", [a, sin], shape)], shape)
        if not rest:
            return g.xnn("Concatenate2", [left, right], x.shape, axis=3)
        return g.xnn("Concatenate3", [left, right, self._slice(x, turned, rest)], x.shape, axis=3)

    def _slice(self, x: Value, start: int, size: int) -> Value:
        """Some of the features of x, or of those of every head."""
        shape, rank = (*x.shape[:-1], size), len(x.shape)
        sizes = [1, 0, *shape[2:]]  # 0: as many as there are
        return self.graph.xnn("StaticSlice", [x], shape, num_dims=rank, offsets=[*[0] * (rank - 1), start], sizes=sizes)

    def _linear(self, x: Value, layer: Linear) -> Value:
        g, name = self.graph, layer.name
        bias = None if layer.bias is None else g.floats(f"{name}.bias", layer.bias.float().numpy())
        if isinstance(layer.weight, Tensor):
            tied = name == HEAD and self.facts.tied
            weight = g.floats(f"{EMBEDDING if tied else name}.weight", layer.weight.float().numpy())
        else:
            weight = self._stored(name, layer.weight)
        return g.xnn("FullyConnected", [x, weight, bias], (*x.shape[:-1], weight.shape[0]))

    def _stored(self, name: str, leaf: Quantized) -> Stored:
        g, (rows, inputs), group = self.graph, leaf.codes.shape, leaf.grid.group_size
        nibbles = leaf.grid.bits <= 4
        if name == HEAD and self.facts.tied and not nibbles and group is None:
            name = EMBEDDING  # the same bytes: looked up there, multiplied with here
        codes = packed(leaf.codes) if nibbles else leaf.codes.contiguous().numpy().tobytes()
        g.store(f"{name}.codes", codes)
        if group is None:
            g.floats(f"{name}.scales", leaf.scales[:, 0].numpy())
        else:
            g.store(f"{name}.scales", leaf.scales.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
        return Stored(f"{name}.codes", (rows, inputs), "int4" if nibbles else "int8", f"{name}.scales", group)


def packed(codes: Tensor) -> bytes:
    """Codes -8..7 [out, in] as XNNPACK's int4: two to a byte, the lower half first, each plus 8."""
    unsigned = (codes.to(torch.int16) + 8).to(torch.uint8)
    return (unsigned[:, ::2] | unsigned[:, 1::2] << 4).contiguous().numpy().tobytes()
