# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of a step stand, in standard operators: rotary angles, and what each query may see.

Everything is computed once per step and used by all layers. The mask follows transformers' masking_utils: causal by
the place in the cache (not by position id, so that left padding works), a window counts its query, and keys that
attention_mask calls padding are hidden. A window counts tokens and no padding: between a prompt that was padded on the
right and its answer there is some.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dlqat import rope
from dlqat.exporters.onnx.io import Io


class Positions:
    """Built when first asked for."""

    def __init__(self, io: Io) -> None:
        self.io, self.graph = io, io.graph
        self._ropes: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._at: tuple[ir.Value, ir.Value] | None = None
        self._visible: dict[int | None, ir.Value] = {}
        self._own: tuple[ir.Value, ir.Value] | None = None

    def cos_sin(self, name: str) -> tuple[ir.Value, ir.Value]:
        """cos and sin float32 [batch, sequence, pairs] of this step's positions, by the rope of that name.

        From the frequencies, not from a table: no limit on the context, and no 67 MB for Llama 3.
        """
        if name not in self._ropes:
            g, own = self.graph, f"rope/{name}/" if name else "rope/"
            frequencies = g.tensor(rope.stored(name, "frequencies"), self.io.facts.inverse_frequencies(name))
            at = g.op("Cast", f"{own}positions", [self.io.positions], {"to": int(ir.DataType.FLOAT)})
            at = g.op("Unsqueeze", f"{own}column", [at, g.integers([2])])
            angles = g.op("Mul", f"{own}angles", [at, frequencies])
            cos, sin = g.op("Cos", f"{own}cos", [angles]), g.op("Sin", f"{own}sin", [angles])
            if (amplitude := rope.attention_factor(self.io.facts.ropes[name])) != 1:
                by = g.tensor(rope.stored(name, "amplitude"), np.array(amplitude, np.float32))
                cos, sin = g.op("Mul", f"{own}cos.scaled", [cos, by]), g.op("Mul", f"{own}sin.scaled", [sin, by])
            self._ropes[name] = cos, sin
        return self._ropes[name]

    def visible(self, window: int | None) -> ir.Value:
        """bool [batch, 1, sequence, total]: the keys that each query sees.

        A padded query sees itself, so that no row is empty: a softmax over nothing is NaN, and NaN spreads.
        """
        if window in self._visible:
            return self._visible[window]
        g, at = self.graph, f"visible.{window or 'all'}"
        key, query = self._places()
        seen = g.op("LessOrEqual", f"{at}/causal", [key, query])
        if window is not None:
            ours, latest = self._numbers()
            first = g.op("Sub", f"{at}/first", [latest, g.integers(window)])
            seen = g.op("And", f"{at}/window", [seen, g.op("Greater", f"{at}/late", [ours, first])])
        real = g.op("Cast", f"{at}/real", [self.io.mask], {"to": int(ir.DataType.BOOL)})
        real = g.op("Unsqueeze", f"{at}/row", [real, g.integers([1, 2])])
        real = g.op("Or", f"{at}/itself", [real, g.op("Equal", f"{at}/diagonal", [key, query])])
        self._visible[window] = g.op("And", at, [real, seen])
        return self._visible[window]

    def _places(self) -> tuple[ir.Value, ir.Value]:
        """Where the keys lie in the cache, int64 [total], and this step's queries, [sequence, 1]."""
        if self._at is None:
            g, one = self.graph, self.graph.integers(1)
            step, total = self._length("step", self.io.rows.ids), self._length("total", self.io.mask)
            query = g.op("Range", "places/query", [g.op("Sub", "places/past", [total, step]), total, one])
            key = g.op("Range", "places/key", [g.integers(0), total, one])
            self._at = key, g.op("Unsqueeze", "places/column", [query, g.integers([1])])
        return self._at

    def _numbers(self) -> tuple[ir.Value, ir.Value]:
        """How many tokens of its row each key ends, int64 [batch, 1, 1, total], and each query, [batch, 1, sequence, 1]."""
        if self._own is None:
            g = self.graph
            number = g.op("CumSum", "numbers/CumSum", [self.io.mask, g.integers(1)])
            own = self.io.rows.latest("numbers/latest", number)
            key = g.op("Unsqueeze", "numbers/key", [number, g.integers([1, 2])])
            self._own = key, g.op("Unsqueeze", "numbers/query", [own, g.integers([1, 3])])
        return self._own

    def _length(self, name: str, x: ir.Value) -> ir.Value:
        """The second dimension of x as a scalar."""
        g = self.graph
        return g.op("Squeeze", f"places/{name}", [g.op("Shape", f"places/{name}.shape", [x], {"start": 1})])
