# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch: which of this step's tokens are real, and whose logits are wanted.

Rows may have any lengths, with the padding on either side: attention_mask says which columns are tokens. transformers
pads on the left, onnxruntime-genai on the right, where the last column of a shorter row is not its last token.

    real     attention_mask[:, -step:]
    last     the last real column of each row
    wanted   the num_logits_to_keep columns that end in `last`; all columns if that is 0

GroupQueryAttention has no mask: it takes a row's length, and the row's keys at the front of its cache. For it the tokens
of each row are put together before the embedding, and put back where logits are selected. Once per step, not per layer.
"""

from __future__ import annotations

from functools import cached_property

import onnx_ir as ir

from dlqat.exporters.onnx.graph import OnnxGraph

END = (1 << 63) - 1


class BatchRows:
    """ids int64 [batch, step], mask int64 [batch, total], keep int64 scalar. `together`: the tokens stand first in a row."""

    def __init__(self, graph: OnnxGraph, ids: ir.Value, mask: ir.Value, keep: ir.Value, *, together: bool) -> None:
        self.graph, self.mask, self.keep, self._given, self.together = graph, mask, keep, ids, together

    @cached_property
    def ids(self) -> ir.Value:
        """input_ids in the order in which the layers see them."""
        if not self.together:
            return self._given
        g = self.graph
        padding = g.op("Sub", "rows/padding", [g.integers(1), self._real])
        behind = g.op("Mul", "rows/behind", [padding, self._step])
        key = g.op("Add", "rows/key", [behind, self._columns])
        count = g.op("Reshape", "rows/count", [self._step, g.integers([1])])
        _, order = g.ops("TopK", "rows/TopK", [key, count], {"largest": 0}, outputs=2)
        return g.op("GatherElements", "rows/ids", [self._given, order], {"axis": 1})

    def select(self, name: str, x: ir.Value) -> ir.Value:
        """The wanted positions [batch, n, ..] of x [batch, step, ..]."""
        g = self.graph
        return g.op("Gather", name, [g.op("Flatten", f"{name}/Flatten", [x], {"axis": 2}), self._wanted])

    @cached_property
    def _wanted(self) -> ir.Value:
        """Indices [batch, n] into the positions of all rows, one row after the other."""
        g, one, zero = self.graph, self.graph.integers(1), self.graph.integers(0)
        every = g.op("Equal", "wanted/every", [self.keep, zero])
        fewer = g.op("Min", "wanted/Min", [self.keep, self._step])
        n = g.op("Where", "wanted/n", [every, self._step, fewer])
        at = g.op("Mul", "rows/at", [self._real, self._columns])
        last = g.op("ReduceMax", "rows/last", [at, g.integers([1])], {"keepdims": 1})
        first = g.op("Sub", "wanted/from", [g.op("Add", "rows/end", [last, one]), n])
        first = g.op("Max", "wanted/first", [first, zero])
        column = g.op("Add", "wanted/columns", [first, g.op("Range", "wanted/Range", [zero, n, one])])
        if self.together:
            place = g.op("Sub", "rows/CumSum", [g.op("CumSum", "rows/number", [self._real, one]), one])
            place = g.op("Max", "rows/place", [place, zero])
            column = g.op("GatherElements", "wanted/places", [place, column], {"axis": 1})
        rows = g.op("Range", "rows/Range", [zero, self._size("batch", 0), one])
        start = g.op("Mul", "rows/start", [rows, self._step])
        start = g.op("Unsqueeze", "rows/column", [start, g.integers([1])])
        return g.op("Add", "wanted", [start, column])

    def latest(self, name: str, x: ir.Value) -> ir.Value:
        """This step's columns of x [batch, total]."""
        g = self.graph
        return g.op("Slice", name, [x, self._start, g.integers([END]), g.integers([1])])

    @cached_property
    def _real(self) -> ir.Value:
        return self.latest("rows/real", self.mask)

    @cached_property
    def _start(self) -> ir.Value:
        g = self.graph
        return g.op("Reshape", "rows/from", [g.op("Neg", "rows/Neg", [self._step]), g.integers([1])])

    @cached_property
    def _columns(self) -> ir.Value:
        g = self.graph
        return g.op("Range", "rows/columns", [g.integers(0), self._step, g.integers(1)])

    @cached_property
    def _step(self) -> ir.Value:
        return self._size("step", 1)

    def _size(self, name: str, axis: int) -> ir.Value:
        """A dimension of input_ids as a scalar."""
        g = self.graph
        size = g.op("Shape", f"rows/{name}.shape", [self._given], {"start": axis, "end": axis + 1})
        return g.op("Squeeze", f"rows/{name}", [size])
