# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as bytes: the protobuf's structure, initializers wherever they lie, bits unpacked by hand.

Formats: onnx.proto (TensorProto: raw_data or external_data with location, offset, length; INT4 and INT2
packed little end first, two's complement).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from dlqat import plain_file
from dlqat.runtime_tests.readers.contents import Span, Unreadable

BITS = {
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
}
UNSIGNED = {TensorProto.UINT2, TensorProto.UINT4, TensorProto.UINT8}
NUMPY: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.BOOL: np.bool_,
}
TYPED_FIELD = {TensorProto.FLOAT: "float_data", TensorProto.INT32: "int32_data", TensorProto.INT64: "int64_data"}


class OnnxFile:
    """One .onnx file and its external data. Unreadable where bytes are missing."""

    def __init__(self, program: Path) -> None:
        self.path = program
        try:
            self.model: Any = onnx.load(str(program), load_external_data=False)
        except Exception as error:
            raise Unreadable(f"{program.name} is no ONNX model ({' '.join(str(error).split())[:200]})") from error
        if (name := _undecoded(self.model)) is not None:  # protobuf gives such a string as bytes
            raise Unreadable(f"{program.name} is no ONNX model (a {name} is not UTF-8 text)")
        self.graph: Any = self.model.graph
        self.initializers: dict[str, Any] = {i.name: i for i in self.graph.initializer}
        self.nodes: list[Any] = list(self.graph.node)
        self.producer: dict[str, Any] = {o: n for n in self.nodes for o in n.output if o}
        self._maps: dict[Path, NDArray[np.uint8]] = {}

    @cached_property
    def consumers(self) -> dict[str, list[Any]]:
        """Value name -> the nodes that take it, with repetition."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def constants(self) -> set[str]:
        """Names of all values that no graph input reaches. Nodes stand in topological order (ONNX requires it)."""
        known = set(self.initializers)
        for node in self.nodes:
            if all(not name or name in known for name in node.input):
                known.update(node.output)
        return known

    @cached_property
    def used(self) -> set[str]:
        """Names of all values that a graph output depends on."""
        seen: set[str] = set()
        stack = [o.name for o in self.graph.output]
        while stack:
            name = stack.pop()
            if name and name not in seen:
                seen.add(name)
                stack.extend(self.producer[name].input if name in self.producer else ())
        return seen

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of an initializer."""
        tensor = self.initializers[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            span = self._external(tensor)
            raw = self.mapped(span.file)[span.offset : span.offset + span.length]
            if len(raw) != span.length:
                where = f"{span.file.name}, bytes {span.offset}..{span.offset + span.length}"
                raise Unreadable(
                    f"{name}: {where}, but the file ends at {len(self.mapped(span.file))}; it is truncated"
                )
        elif tensor.data_type in TYPED_FIELD and not tensor.raw_data:
            field = getattr(tensor, TYPED_FIELD[tensor.data_type])
            raw = np.frombuffer(np.array(field, NUMPY[tensor.data_type]).tobytes(), np.uint8)
        else:
            raw = np.frombuffer(tensor.raw_data, np.uint8)
        if len(raw) != (need := byte_size(tensor)):
            raise Unreadable(f"{name}: holds {len(raw)} bytes, its shape {tuple(tensor.dims)} needs {need}")
        return raw

    def integers(self, name: str) -> NDArray[np.uint8]:
        """The stored integers of 2, 4 or 8 bits as unsigned bit patterns, in the tensor's shape."""
        tensor = self.initializers[name]
        if tensor.data_type not in BITS:
            raise Unreadable(f"{name}: type {type_name(tensor)} is no integer of 2, 4 or 8 bits")
        shape = tuple(tensor.dims)
        return unpack(self.raw(name), BITS[tensor.data_type])[: int(np.prod(shape))].reshape(shape)

    def array(self, name: str) -> NDArray[Any]:
        """An initializer of a plain type (float32, int64, ...)."""
        tensor = self.initializers[name]
        if tensor.data_type not in NUMPY:
            raise Unreadable(f"{name}: type {type_name(tensor)} is not known to the reader")
        return self.raw(name).view(NUMPY[tensor.data_type]).reshape(tuple(tensor.dims))

    def floats(self, name: str) -> NDArray[np.float32]:
        """An initializer that must be float32."""
        if self.initializers[name].data_type != TensorProto.FLOAT:
            raise Unreadable(f"{name}: type {type_name(self.initializers[name])} where float32 is expected")
        return self.array(name)

    def cache_width(self, name: str) -> int:
        """The size of a head, by the declared shape of a cache that is an input."""
        (given,) = (i for i in self.graph.input if i.name == name)
        return int(given.type.tensor_type.shape.dim[3].dim_value)

    def factor(self, node: Any) -> str | None:
        """NAME of a Mul with the one number NAME.factor; None for any other product."""
        return self._number(node, ".factor")

    def limit(self, node: Any) -> str | None:
        """NAME of an operation whose second input is the one number NAME.limit; None for any other."""
        return self._number(node, ".limit") if node.input[1] in self.initializers else None

    def _number(self, node: Any, suffix: str) -> str | None:
        stored = [n for n in node.input if n in self.initializers]
        if len(stored) != 1 or not stored[0].endswith(suffix) or self.array(stored[0]).size != 1:
            return None
        return stored[0].removesuffix(suffix)

    def span(self, name: str) -> Span | None:
        """Where the bytes of an initializer lie; None if they cannot be told from others in the .onnx file."""
        tensor = self.initializers[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._external(tensor)
        content, raw = self.mapped(self.path).tobytes(), tensor.raw_data
        if len(raw) < 8 or content.count(raw) != 1:
            return None
        return Span(self.path, content.find(raw), len(raw))

    def external(self) -> dict[Path, list[tuple[int, int]]]:
        """Files of external data, and the (offset, length) of every tensor in them."""
        found: dict[Path, list[tuple[int, int]]] = {}
        for tensor in self.initializers.values():
            if tensor.data_location == TensorProto.EXTERNAL:
                span = self._external(tensor)
                found.setdefault(span.file, []).append((span.offset, span.length))
        return found

    def _external(self, tensor: Any) -> Span:
        entry = {e.key: e.value for e in tensor.external_data}
        name = entry.get("location", "")
        if (reason := plain_file.inside_fault(self.path.parent, name)) is not None:
            raise Unreadable(f"{tensor.name}: its data is {name!r} beside {self.path.name}, which {reason}")
        offset, length = (entry.get(key, default) for key, default in (("offset", "0"), ("length", byte_size(tensor))))
        if not (str(offset).isdecimal() and str(length).isdecimal()):
            raise Unreadable(f"{tensor.name}: its data has the offset {offset!r} and the length {length!r}")
        return Span(self.path.parent / name, int(offset), int(length))

    def mapped(self, file: Path) -> NDArray[np.uint8]:
        """All bytes of a file."""
        if file not in self._maps:
            empty = file.stat().st_size == 0
            self._maps[file] = np.zeros(0, np.uint8) if empty else np.memmap(file, np.uint8, "r")
        return self._maps[file]


def inlined(file: OnnxFile, name: str) -> Any:
    """An initializer with its bytes inside, wherever they lie."""
    source = file.initializers[name]
    copy = TensorProto(name=name, data_type=source.data_type, dims=source.dims)
    copy.raw_data = file.raw(name).tobytes()
    return copy


def unpack(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes [..., n] -> unsigned integers [..., n * 8 / bits], little end first."""
    if bits == 8:
        return raw
    per = 8 // bits
    out = np.empty((*raw.shape[:-1], raw.shape[-1] * per), np.uint8)
    for i in range(per):
        out[..., i::per] = (raw >> (bits * i)) & ((1 << bits) - 1)
    return out


def byte_size(tensor: Any) -> int:
    """How many bytes the shape and type of a TensorProto need."""
    count = int(np.prod(tuple(tensor.dims)))
    if tensor.data_type in BITS:
        return -(-count * BITS[tensor.data_type] // 8)
    if tensor.data_type in NUMPY:
        return count * np.dtype(NUMPY[tensor.data_type]).itemsize
    raise Unreadable(f"{tensor.name}: type {type_name(tensor)} is not known to the reader")


def type_name(tensor: Any) -> str:
    """INT4, FLOAT, ..."""
    return TensorProto.DataType.Name(tensor.data_type)


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def stem(node: Any) -> str:
    found, slash, _ = node.name.rpartition("/")
    if not slash:
        raise Unreadable(
            f"{node.op_type} {node.name!r} multiplies with stored numbers but names no layer (PATH/{node.op_type})"
        )
    return found


def repeated(names: Iterator[str]) -> list[str]:
    """The names that occur more than once."""
    return sorted(n for n, count in Counter(names).items() if count > 1)


def _undecoded(message: Any) -> str | None:
    """The field of a string that is not UTF-8, anywhere in a protobuf message; or None."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            if any(isinstance(one, bytes) for one in ([value] if isinstance(value, str | bytes) else value)):
                return str(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for one in [value] if hasattr(value, "ListFields") else value:
                if (name := _undecoded(one)) is not None:
                    return name
    return None
