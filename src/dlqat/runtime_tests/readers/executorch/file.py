# SPDX-License-Identifier: Apache-2.0
"""A .pte file as bytes: its program, where every stored tensor lies, and the graphs inside its XNNPACK delegates.

Formats: executorch's program.fbs (constants and named data are ranges of segments behind the program) and the schema of
its XNNPACK backend. Both are decoded by executorch's own decoders; offsets are computed here.
"""

# pyright: reportPrivateUsage=false
# executorch has no public decoder of program and payload; the version is pinned.

from __future__ import annotations

import json
import tempfile
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as xnnpack
from executorch.exir import schema
from executorch.exir._serialize import _flatbuffer as flatbuffer
from executorch.exir._serialize import _flatbuffer_program as decoder
from executorch.exir._serialize import _program as header
from executorch.exir.scalar_type import ScalarType
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Span, Unreadable

NUMPY: dict[int, Any] = {
    ScalarType.FLOAT: np.float32,
    ScalarType.CHAR: np.int8,
    ScalarType.BYTE: np.uint8,
    ScalarType.INT: np.int32,
    ScalarType.LONG: np.int64,
}
XnnGraph = dict[str, Any]
"""An XNNGraph as JSON; numbers that are 0 are left out."""


class PteFile:
    """One .pte file. Unreadable where bytes are missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        head = header._get_extended_header(self.bytes[:64].tobytes())  # noqa: SLF001
        if head is None:
            raise Unreadable(f"{path.name} is no .pte file with an extended header; it is damaged or of another kind")
        self.base, self.program_size = head.segment_base_offset, head.program_size
        if (need := self.base + head.segment_data_size) > len(self.bytes):
            raise Unreadable(f"{path.name} ends at {len(self.bytes)}, its header says {need}; it is truncated")
        try:
            decode: Any = decoder._flatbuffer_to_program  # noqa: SLF001
            self.program: schema.Program = decode(self.bytes[: head.program_size].tobytes())
        except Exception as error:
            raise Unreadable(
                f"{path.name}: its program does not decode ({' '.join(str(error).split())[:200]})"
            ) from error

    @cached_property
    def named(self) -> dict[str, Span]:
        """Key of the named data -> where its bytes are."""
        return {entry.key: self._segment(entry.segment_index) for entry in self.program.named_data or []}

    @cached_property
    def names(self) -> dict[tuple[int, int], str]:
        """(offset, length) -> key: the name of what a kernel refers to by number."""
        return {(span.offset, span.length): key for key, span in self.named.items()}

    @property
    def methods(self) -> list[schema.ExecutionPlan]:
        """The entry points that compute something."""
        return [plan for plan in self.program.execution_plan if plan.chains[0].instructions]

    def numbers(self, method: str) -> list[int]:
        """What a method without inputs tells; empty if there is none of that name."""
        plans = (p for p in self.program.execution_plan if p.name == method)
        return [int(getattr(p.values[i].val, "int_val", -1)) for p in plans for i in p.outputs]

    def constant(self, tensor: schema.Tensor) -> Span:
        """Where the bytes of a constant tensor of the program are."""
        where = self.program.constant_segment
        if not 0 < tensor.data_buffer_idx < len(where.offsets):
            raise Unreadable(f"{self.path.name}: tensor {tensor.data_buffer_idx} is not among the constants")
        start = self._segment(where.segment_index).offset + where.offsets[tensor.data_buffer_idx]
        return self._inside(start, prod(tensor.sizes) * np.dtype(NUMPY[tensor.scalar_type]).itemsize)

    def graph(self, delegate: schema.BackendDelegate) -> XnnGraph:
        """The graph of an XNNPACK delegate."""
        if delegate.id != "XnnpackBackend":
            raise Unreadable(f"{self.path.name}: delegate {delegate.id} is not known to the reader")
        if delegate.processed.location != schema.DataLocation.SEGMENT:
            raise Unreadable(f"{self.path.name}: a delegate's payload stands inside the program")
        index = delegate.processed.index
        if index not in self._graphs:
            self._graphs[index] = decompile(self.raw(self._segment(index)))
        return self._graphs[index]

    def spans(self) -> list[tuple[int, int]]:
        """(offset, length) of the program and of every segment."""
        return [(0, self.program_size), *((self.base + s.offset, s.size) for s in self.program.segments)]

    def name(self, tensor: schema.Tensor) -> str:
        """The key of a constant tensor of the program."""
        span = self.constant(tensor)
        if (span.offset, span.length) not in self.names:
            raise Unreadable(f"a constant of shape {tuple(tensor.sizes)} has no name, so no layer claims it")
        return self.names[span.offset, span.length]

    def key(self, graph: XnnGraph, value: Any) -> str:
        """The key of a constant of an XNNPACK graph."""
        return self.key_at(graph, tensor(value)["constant_buffer_idx"])

    def key_at(self, graph: XnnGraph, index: int) -> str:
        """The same by its number among the graph's constants."""
        key = graph["constant_data"][index].get("named_key", "")
        if key not in self.named:
            raise Unreadable(f"an XNNPACK graph uses the constant {key!r}, which the file does not hold")
        return key

    def owned(self, plan: schema.ExecutionPlan, call: schema.DelegateCall, graph: XnnGraph) -> dict[int, schema.Tensor]:
        """Constants of the program that a delegate takes as inputs, by their number in its graph.

        The runtime hands over the arguments of the call in the order of the external numbers: inputs, then outputs.
        """
        given = inputs(graph)
        if len(call.args) != len(given) + len(graph.get("output_ids", [])):
            raise Unreadable(f"method {plan.name} calls a delegate with {len(call.args)} tensors, and it has others")
        found = {i: plan.values[a].val for i, a in zip(given, call.args, strict=False)}
        return {i: v for i, v in found.items() if isinstance(v, schema.Tensor) and v.data_buffer_idx}

    def raw(self, span: Span) -> bytes:
        """The bytes of a span."""
        return self.bytes[span.offset : span.offset + span.length].tobytes()

    def array(self, span: Span, dtype: Any) -> NDArray[Any]:
        """The bytes of a span as numbers."""
        return np.frombuffer(self.raw(span), dtype)

    @cached_property
    def _graphs(self) -> dict[int, XnnGraph]:
        return {}

    def _segment(self, index: int) -> Span:
        segments = self.program.segments
        if not 0 <= index < len(segments):
            raise Unreadable(f"{self.path.name}: there is no segment {index}")
        return self._inside(self.base + segments[index].offset, segments[index].size)

    def _inside(self, offset: int, length: int) -> Span:
        if offset + length > len(self.bytes):
            raise Unreadable(f"{self.path.name}: bytes {offset}..{offset + length} lie behind its end; it is truncated")
        return Span(self.path, offset, length)


def tensor(value: dict[str, Any]) -> dict[str, Any]:
    """The tensor of an XValue, quantized or not."""
    union = value["xvalue_union"]
    return union.get("tensor_value", union)


def inputs(graph: XnnGraph) -> list[int]:
    """Numbers of the values that a delegate's caller gives, in its order."""
    return _externals(graph, "input_ids")


def outputs(graph: XnnGraph) -> list[int]:
    """Numbers of the values that it gives back, in its order."""
    return _externals(graph, "output_ids")


def _externals(graph: XnnGraph, which: str) -> list[int]:
    external = {tensor(v).get("id_out", 0): tensor(v).get("external_id", 0) for v in graph["xvalues"]}
    return sorted(graph.get(which, []), key=lambda i: external.get(i, -1))


def stem(key: str, suffix: str) -> str:
    """PATH of a key PATH.suffix; Unreadable if it ends otherwise."""
    path, _, last = key.rpartition(".")
    if last != suffix:
        raise Unreadable(f"{key}: stored under a name that is no PATH.{suffix}, so no layer claims it")
    return path


def decompile(payload: bytes) -> XnnGraph:
    """An XNNPACK payload as JSON. Unreadable if it is none."""
    size = xnnpack.XNNHeader.EXPECTED_LENGTH
    try:
        head = xnnpack.XNNHeader.from_bytes(payload[:size])
    except ValueError as error:
        raise Unreadable(f"a delegate's payload has no XNNPACK header ({error})") from error
    if head.constant_data_size:
        raise Unreadable("an XNNPACK payload holds constants of its own, without names")
    content = payload[head.flatbuffer_offset : head.flatbuffer_offset + head.flatbuffer_size]
    run: Any = flatbuffer._flatc_decompile  # noqa: SLF001
    with tempfile.TemporaryDirectory() as folder:
        _write_schema(Path(folder))
        Path(folder, "graph.bin").write_bytes(content)
        run(folder, f"{folder}/schema.fbs", f"{folder}/graph.bin", ["--raw-binary"])
        return json.loads(Path(folder, "graph.json").read_text(encoding="utf-8"))


def compile_graph(graph: XnnGraph) -> bytes:
    """JSON as an XNNPACK payload."""
    run: Any = flatbuffer._flatc_compile  # noqa: SLF001
    with tempfile.TemporaryDirectory() as folder:
        _write_schema(Path(folder))
        Path(folder, "graph.json").write_text(json.dumps(graph), encoding="utf-8")
        run(folder, f"{folder}/schema.fbs", f"{folder}/graph.json")
        content = Path(folder, "graph.bin").read_bytes()
    start = 32  # the header's 30 bytes, and the flatbuffer at a multiple of 16
    head = xnnpack.XNNHeader(start, len(content), start + len(content), 0).to_bytes()
    return head + b"\0" * (start - len(head)) + content


def _write_schema(folder: Path) -> None:
    text = Path(xnnpack.__file__).with_name("schema.fbs").read_bytes()
    (folder / "schema.fbs").write_bytes(text)
