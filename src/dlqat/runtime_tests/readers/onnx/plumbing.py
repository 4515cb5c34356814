# SPDX-License-Identifier: Apache-2.0
"""The small integer graphs of an ONNX decoder, held to what they must compute by running them.

Which tokens are looked up, which keys a query sees, rotary angles, lengths of rows and the rows whose logits are wanted depend
on ids, mask and positions alone. They are cut out and run by onnx's reference implementation on batches of uneven rows,
padded on either side, up to 131,072 positions: whatever they are made of, their numbers are right or wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.readers.contents import Unreadable
from dlqat.runtime_tests.readers.onnx.file import OnnxFile, inlined

Array = NDArray[Any]
KEEP = "num_logits_to_keep"
FAR = 131072


@dataclass(frozen=True, eq=False)
class Batch:
    """One step: mask int64 [batch, total], 1 where a token is; the last `step` columns are new."""

    mask: Array
    step: int

    @property
    def real(self) -> Array:
        """Which new columns are tokens."""
        return self.mask[:, -self.step :] == 1

    @property
    def numbers(self) -> Array:
        """Which token of its row each column ends, from 1 on."""
        return self.mask.cumsum(1)

    def feeds(self) -> dict[str, Array]:
        """Ids are all different and large, so that a lookup tells which column it took, and none is clipped unseen."""
        rows, total = self.mask.shape
        past = np.zeros((rows, 1, total - self.step, 2), np.float32)
        ids = 9973 * np.arange(rows * self.step, dtype=np.int64).reshape(rows, self.step)
        positions = np.maximum(self.numbers[:, -self.step :] - 1, 0)
        return {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions, "past": past}


def _batches(far: int) -> tuple[Batch, ...]:
    one = np.ones((1, 9), np.int64)
    left, right, gap = one.copy(), one.copy(), one.copy()
    left[:, :2], right[:, -2:], gap[:, 3:5] = 0, 0, 0
    long = np.ones((1, far), np.int64)
    return (
        Batch(one, 9),
        Batch(np.concatenate([left, one]), 9),
        Batch(np.concatenate([right, one, right]), 9),
        Batch(np.concatenate([gap, one]), 4),
        Batch(one[:, :1], 1),
        Batch(long, 3),
    )


class Plumbing:
    """Checks of one file; each value once. Unreadable, naming the value, where its numbers are others."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self._windows: dict[str, float] = {}
        self._good: set[tuple[str, ...]] = set()

    def ids(self, name: str) -> None:
        """Tokens in the order in which the layers see them: each real one of this step once, in order."""
        for batch, (found,) in self._runs((name,)):
            given, real = batch.feeds()["input_ids"], batch.real
            rows = zip(found, given, real, strict=True)
            same = found.shape == given.shape and all(np.array_equal(f[: r.sum()], g[r]) for f, g, r in rows)
            if not same and not np.array_equal(found, given):
                raise Unreadable(f"{name}: other tokens are looked up than input_ids has")

    def wanted(self, indices: str, ids: str) -> None:
        """Gather's indices into the positions of all rows: the last num_logits_to_keep tokens of each."""
        values = self.file.initializers
        fixed = KEEP in values and KEEP not in {i.name for i in self.file.graph.input}
        for keep in (int(self.file.array(KEEP).item()),) if fixed else (0, 1, 2):
            for batch, (at, order) in self._runs((indices, ids), {} if fixed else {KEEP: np.array(keep, np.int64)}):
                given, real = batch.feeds()["input_ids"], batch.real
                for row, columns in enumerate(order.reshape(-1)[at]):
                    tokens = given[row][: real[row].nonzero()[0].max(initial=-1) + 1][-keep:] if keep else given[row]
                    seen = real[row] if keep == 0 else np.ones(len(tokens), bool)
                    if len(columns) < len(tokens) or not np.array_equal(
                        columns[-len(tokens) :][seen[-len(tokens) :]], tokens[seen]
                    ):
                        raise Unreadable(
                            f"{indices}: with {KEEP} = {keep} other positions are taken than the last ones"
                        )

    def window(self, mask: str) -> float:
        """How many latest tokens a query sees through a mask bool or float [batch, 1, step, total]; infinity: all."""
        if mask not in self._windows:
            runs = [(batch, _visible(mask, found)) for batch, (found,) in self._runs((mask,))]
            batch, far = runs[-1]
            count = int(far[0, 0, -1].sum())
            window = np.inf if count == batch.mask.shape[1] else count
            for one, seen in runs:
                if not _as_meant(one, seen, window):
                    raise Unreadable(f"{mask}: it is not the causal mask of attention_mask and a window of {window}")
            self._windows[mask] = window
        return self._windows[mask]

    def angles(self, cos: str, sin: str, frequencies: NDArray[np.float32], amplitude: float) -> None:
        """amplitude times cos and sin [batch, step, n] of position_ids times the frequencies."""
        for batch, found in self._runs((cos, sin)):
            angles = batch.feeds()["position_ids"][..., None].astype(np.float64) * frequencies
            slack = amplitude * tolerances.ROTARY * np.maximum(1, angles)
            for got, name, function in zip(found, (cos, sin), (np.cos, np.sin), strict=True):
                if got.shape != angles.shape or not bool((np.abs(got - amplitude * function(angles)) <= slack).all()):
                    raise Unreadable(
                        f"{name}: it is not the {function.__name__} of position_ids times the stored frequencies"
                    )

    def lengths(self, last: str, total: str) -> None:
        """GroupQueryAttention's seqlens_k (tokens of each row, less one) and total_sequence_length."""
        for batch, (keys, length) in self._runs((last, total)):
            if not np.array_equal(keys.ravel(), batch.mask.sum(1) - 1) or length.item() != batch.mask.shape[1]:
                raise Unreadable(f"{last}, {total}: these are not the lengths that attention_mask has")

    def _runs(
        self, names: Sequence[str], more: Mapping[str, Array] | None = None
    ) -> Iterator[tuple[Batch, list[Array]]]:
        key = (*names, *(f"{n}={v}" for n, v in (more or {}).items()))
        if key in self._good:
            return
        model = self._cut(names)
        evaluator: Any = ReferenceEvaluator(model)
        for batch in _batches(FAR):
            feeds = {**batch.feeds(), **(more or {})}
            past = feeds.pop("past")
            given = {n: feeds.get(n, past) for n in evaluator.input_names}
            yield batch, list(evaluator.run(None, given))
        self._good.add(key)

    def _cut(self, names: Sequence[str]) -> Any:
        """The nodes behind `names`, as a model of the graph's own inputs."""
        inputs, nodes, stored, seen = list[Any](), list[Any](), list[str](), set[str]()
        given, stack = {i.name: i for i in self.file.graph.input}, list(names)
        while stack:
            name = stack.pop()
            if name in seen or not name:
                continue
            seen.add(name)
            if name in given:
                inputs.append(given[name])
            elif name in self.file.initializers:
                stored.append(name)
            elif name in self.file.producer:
                node = self.file.producer[name]
                seen.update(node.output)
                nodes.append(node)
                stack += node.input
        if odd := [n for n in nodes if n.domain not in ("", "ai.onnx")]:
            raise Unreadable(f"{odd[0].name}: {odd[0].op_type} among masks and positions, which the reader cannot run")
        order = {id(n): i for i, n in enumerate(self.file.nodes)}
        nodes.sort(key=lambda n: order[id(n)])
        outputs = [onnx.helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in names]
        tensors = [inlined(self.file, n) for n in stored]
        graph = onnx.helper.make_graph(nodes, "plumbing", inputs, outputs, tensors)
        version = self.file.model
        return onnx.helper.make_model(graph, opset_imports=version.opset_import, ir_version=version.ir_version)


def _visible(name: str, found: Array) -> Array:
    """A mask as bool: as it is, or 0 where a key is seen and a very small number where not."""
    if found.dtype == np.bool_:
        return found
    if not bool(((found == 0) | (found <= -1e30)).all()):
        raise Unreadable(f"{name}: it adds other numbers to the scores than 0 and minus infinity")
    return found == 0


def _as_meant(batch: Batch, seen: Array, window: float) -> bool:
    """Whether each real query sees the real keys up to itself, the latest `window` of them."""
    rows, total = batch.mask.shape
    place = np.arange(total)
    query = place[-batch.step :, None]
    numbers = batch.numbers
    for row in range(rows):
        own = numbers[row, -batch.step :, None]
        wanted = (place <= query) & (batch.mask[row] == 1) & (numbers[row] > own - window)
        real = batch.real[row]
        got = np.broadcast_to(seen, (rows, 1, batch.step, total))[row, 0]
        if not np.array_equal(got[real], wanted[real]):
            return False
    return True
