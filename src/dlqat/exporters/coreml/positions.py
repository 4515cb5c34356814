# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of a step stand in the cache: lengths, rotary angles, and the mask, made once per step.

Callers say how long the text is with the shape of `causalMask` [1, 1, 1, n + 1], n the tokens in the cache after
this step; its values are not read. That is what swift-transformers sends (LanguageModelWithStatefulKVCache): zeros,
in prefill too, so a program that adds the mask to its scores would let every token see the future. The mask is made
here instead, with a finite minimum: -inf in float16 gives NaN on some kernels, and exp(-40000) is 0 as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlqat import rope
from dlqat.architecture import Decoder
from dlqat.exporters.coreml.tools import mb
from dlqat.exporters.coreml.weights import constant

HIDDEN = -40000.0


class Positions:
    """`past` and `total` int32 [1]: tokens in the cache before and after this step."""

    def __init__(self, facts: Decoder, context: int, ids: Any, mask: Any) -> None:
        step = _dimension(ids, 1, "step")
        self.total = mb.sub(x=_dimension(mask, 3, "length"), y=np.array([1], np.int32), name="total")
        self.past = mb.sub(x=self.total, y=step, name="past")
        last, first = mb.squeeze(x=self.total, axes=[0]), mb.squeeze(x=self.past, axes=[0])
        self._queries = mb.range_1d(start=first, end=last, step=np.int32(1), name="queries")
        self._keys = mb.range_1d(start=np.int32(0), end=last, step=np.int32(1), name="keys")
        self._facts = facts
        self._ropes = {name: self._rope(name, facts.rope_tables(context, name)) for name in facts.ropes}
        self._masks: dict[tuple[int | None, int], Any] = {}

    def _rope(self, name: str, tables: Any) -> tuple[Any, Any]:
        """cos and sin of a rope at this step's positions, for both halves of what it turns."""
        cos, sin = (self._rows(rope.stored(name, n), t) for n, t in zip(("cos", "sin"), tables, strict=True))
        minus = mb.mul(x=sin, y=np.float16(-1))
        own = f"rope_{name}_" if name else "rope_"
        return (
            mb.concat(values=[cos, cos], axis=-1, name=f"{own}cos"),
            mb.concat(values=[minus, sin], axis=-1, name=f"{own}sin"),
        )

    def rotate(self, x: Any, name: str) -> Any:
        """x [1, heads, step, size] turned by its positions: (a, b) -> (a cos - b sin, b cos + a sin). What stands behind the
        numbers that turn stays."""
        size, turned = x.shape[-1], self._facts.turned(name)
        if turned < size:
            first, rest = mb.split(x=x, split_sizes=[turned, size - turned], axis=-1)
            return mb.concat(values=[self._rotate(first, name), rest], axis=-1)
        return self._rotate(x, name)

    def _rotate(self, x: Any, name: str) -> Any:
        a, b = mb.split(x=x, num_splits=2, axis=-1)
        swapped = mb.concat(values=[b, a], axis=-1)
        cos, sin = self._ropes[name]
        return mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=swapped, y=sin))

    def mask(self, window: int | None, rows: int) -> Any:
        """float16 [1, 1, rows * step, total], 0 or HIDDEN: the queries of `rows` heads below one another."""
        if (window, rows) not in self._masks:
            query, key = mb.expand_dims(x=self._queries, axes=[1]), mb.expand_dims(x=self._keys, axes=[0])
            hidden = mb.greater(x=key, y=query)
            if window is not None:
                early = mb.less_equal(x=key, y=mb.sub(x=query, y=np.int32(window)))
                hidden = mb.logical_or(x=hidden, y=early)
            values = mb.mul(x=mb.cast(x=hidden, dtype="fp16"), y=np.float16(HIDDEN))
            tiled = mb.tile(x=values, reps=[rows, 1]) if rows > 1 else values
            name = f"mask_{window or 'all'}"
            self._masks[window, rows] = mb.expand_dims(x=tiled, axes=[0, 1], name=name)
        return self._masks[window, rows]

    def _rows(self, name: str, table: Any) -> Any:
        """The rows of a table float32 [context, size / 2] at this step's positions, rounded to float16."""
        rows = mb.gather(x=constant(name.replace(".", "__"), table), indices=self._queries, axis=0)
        return mb.cast(x=rows, dtype="fp16")


def _dimension(x: Any, axis: int, name: str) -> Any:
    """One dimension of x as int32 [1]."""
    return mb.slice_by_index(x=mb.shape(x=x), begin=[axis], end=[axis + 1], name=name)
