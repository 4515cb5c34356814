# SPDX-License-Identifier: Apache-2.0
"""What a .pte is made of, as values: nodes in the order in which they run, and constants by name.

An ExecuTorch program is a list of calls. Two kinds serve a language model: kernels (embedding, cache, attention) and
delegates. XNNPACK is the delegate here; it takes a whole piece of graph, so nodes that XNNPACK computes are kept apart
from kernel calls, and everything between two kernels becomes one delegate (program.py). One node is one
operation of XNNPACK's own subgraph API.

Shapes are upper bounds; a dimension of TOKENS is the number of tokens of this step.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

TOKENS = -1
SELECT = "aten::slice_copy.Tensor_out"


@dataclass(frozen=True, eq=False)
class Value:
    """A float32 tensor that is computed in every step (or an input, or a cache)."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Scalar:
    """An integer that is computed in every step."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A constant: the bytes of `Graph.data[name]`, in this shape. `dtype` is the program's (float32, int8, int64, ...).

    Quantized: codes [out, in] with their scales under `scales`; group None: one scale per row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    scales: str | None = None
    group: int | None = None


@dataclass(frozen=True, eq=False)
class Xnn:
    """One operation of XNNPACK: kind is the name of its class in executorch's schema without XNN."""

    kind: str
    inputs: tuple[Value | Stored | None, ...]
    output: Value
    int8: bool = False
    """Whether the output is the input rounded to int8 per token (XNNConvert to qdint8)."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def given(self) -> list[Value | Stored]:
        """The tensors that it reads while it runs.

        FullyConnected packs its constants when the program is loaded. Any other constant is given to the delegate as an
        input and stays the program's: XNNPACK frees a delegate's own constants after packing where its weights cache is
        on, as it is in ExecuTorch's builds for Android and Apple.
        """
        packs = self.kind == "FullyConnected"
        return [x for x in self.inputs if isinstance(x, Value) or (isinstance(x, Stored) and not packs)]


@dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel call. Arguments: values, constants, scalars, Python numbers, None, lists of integers."""

    op: str
    arguments: tuple[Any, ...]
    output: Value | Scalar


Node = Xnn | Kernel


class Constants(Mapping[str, bytes]):
    """Bytes by name, in a file until the program is written: together they are as large as the model."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._kept: dict[str, tuple[int, int, bytes]] = {}

    def add(self, name: str, content: bytes) -> None:
        """The same name twice must be the same bytes."""
        digest = hashlib.sha256(content).digest()
        start, size, known = self._kept.setdefault(name, (self._file.seek(0, 2), len(content), digest))
        assert (size, known) == (len(content), digest), f"{name} is stored with two contents"
        if start == self._file.tell():
            self._file.write(content)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: size for name, (_, size, _) in self._kept.items()}

    def __getitem__(self, name: str) -> bytes:
        start, size, _ = self._kept[name]
        self._file.seek(start)
        return self._file.read(size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


class PteGraph:
    """Nodes in order, constants by name. `spool`: where these are kept; None: in memory."""

    def __init__(self, spool: IO[bytes] | None = None) -> None:
        self.nodes: list[Node] = []
        self.caches: list[Value] = []
        self.data = Constants(spool or io.BytesIO())

    def xnn(
        self,
        kind: str,
        inputs: Sequence[Value | Stored | None],
        shape: tuple[int, ...],
        *,
        int8: bool = False,
        **settings: Any,
    ) -> Value:
        """Append an operation of XNNPACK; its result."""
        output = Value(shape)
        self.nodes.append(Xnn(kind, tuple(inputs), output, int8, settings))
        return output

    def kernel(self, op: str, arguments: Sequence[Any], shape: tuple[int, ...]) -> Value:
        """Append a kernel that fills a tensor; `op` as namespace::name.overload."""
        output = Value(shape)
        self.nodes.append(Kernel(op, tuple(arguments), output))
        return output

    def scalar(self, op: str, *arguments: Any) -> Scalar:
        """Append a primitive that gives an integer."""
        output = Scalar()
        self.nodes.append(Kernel(op, tuple(arguments), output))
        return output

    def cache(self, shape: tuple[int, ...]) -> Value:
        """A tensor that keeps its content from step to step."""
        self.caches.append(Value(shape))
        return self.caches[-1]

    def floats(self, name: str, values: NDArray[np.float32]) -> Stored:
        """A float32 constant."""
        self.data.add(name, np.ascontiguousarray(values, np.float32).tobytes())
        return Stored(name, values.shape)

    def integers(self, name: str, values: NDArray[Any]) -> Stored:
        """An integer constant of the type that it has."""
        self.data.add(name, np.ascontiguousarray(values).tobytes())
        return Stored(name, values.shape, str(values.dtype))

    def store(self, name: str, content: bytes) -> str:
        """Bytes under a name; the same name twice must be the same bytes."""
        self.data.add(name, content)
        return name


def whole(nodes: Sequence[Node], output: Value) -> tuple[list[Node], Value]:
    """The same step without the choice of its last position: (nodes, output) with every row of `output`."""
    changed: dict[Value, Value] = {}
    kept: list[Node] = []

    def now(x: Any) -> Any:
        return changed.get(x, x) if isinstance(x, Value) else x

    for node in nodes:
        if isinstance(node, Kernel) and node.op == SELECT and isinstance(node.arguments[0], Value):
            assert isinstance(node.output, Value)
            changed[node.output] = now(node.arguments[0])
            continue
        given = node.inputs if isinstance(node, Xnn) else node.arguments
        if any(isinstance(x, Value) and x in changed for x in given):
            assert isinstance(node.output, Value)
            changed[node.output] = Value((1, TOKENS, *node.output.shape[2:]))
            taken = tuple(now(x) for x in given)
            new = {"inputs" if isinstance(node, Xnn) else "arguments": taken, "output": changed[node.output]}
            kept.append(replace(node, **new))
        else:
            kept.append(node)
    return kept, now(output)
