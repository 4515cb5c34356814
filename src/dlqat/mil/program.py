# SPDX-License-Identifier: Apache-2.0
"""A Core ML package as Python values: functions, operations by name, constants as numpy arrays.

Read from the package's own bytes (schema.py, blobs.py). The interpreter runs it, and the proof's reader
walks it; neither knows what wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat import json_file, plain_file
from dlqat.mil import blobs as mil_blobs
from dlqat.mil import schema
from dlqat.mil.blobs import Blob, Blobs, Damaged
from dlqat.refusal import Refusal

KINDS: dict[int, str] = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32", 24: "int64",
    25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3",
}  # fmt: skip
"""MIL.proto's DataType."""


@dataclass(frozen=True, slots=True)
class Type:
    """Element type and shape of a value; None: a dimension that the caller decides. `state`: a cell that keeps it."""

    kind: str
    shape: tuple[int | None, ...]
    state: bool = False


@dataclass(frozen=True, eq=False)
class Constant:
    """A literal of the program. `blob`: where its bytes lie, if they are in a file of their own."""

    type: Type
    message: Any
    blobs: Blobs | None
    offset: int = 0

    @property
    def blob(self) -> Blob | None:
        return None if self.blobs is None else self.blobs.blob(self.offset)

    @cached_property
    def value(self) -> Any:
        """A numpy array in the type's shape (int4 as int8, uint3 as uint8), a string, or a list of strings."""
        if self.blobs is None:
            return _immediate(self.message.immediateValue, self.type)
        found = self.blobs.blob(self.offset)
        if found.kind != self.type.kind:
            raise Damaged(f"byte {self.offset} holds {found.kind}, the program expects {self.type.kind}")
        return _shaped(self.blobs.read(self.offset), self.type)


Argument = str | Constant
"""A value's name, or a literal."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation. Attributes that are arguments (constexpr operations have such) stand among the inputs."""

    kind: str
    name: str
    inputs: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[str, ...]
    types: tuple[Type, ...]
    message: Any

    def names(self) -> list[str]:
        """The values that it uses."""
        return [a for arguments in self.inputs.values() for a in arguments if isinstance(a, str)]


@dataclass(frozen=True, eq=False)
class Function:
    """A function of the program: what goes in, what is done in order, what comes out."""

    name: str
    inputs: Mapping[str, Type]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    producer: Mapping[str, Operation] = field(default_factory=dict[str, Operation])


class Package:
    """An .mlpackage folder. Damaged if a part is missing or makes no sense."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model_file = path / "Data" / _root(path)
        try:
            self.model = schema.parse(self.model_file.read_bytes())
        except Exception as error:  # google.protobuf's DecodeError, without importing it here
            raise Damaged(f"{self.model_file.name} is no Core ML model ({error})") from error
        if not self.model.mlProgram.functions:
            raise Damaged(f"{path.name} holds no ML program (a neural network of an older kind, or nothing)")
        self._files: dict[str, Blobs] = {}

    @property
    def metadata(self) -> dict[str, str]:
        """User-defined metadata."""
        return {e.key: e.value for e in self.model.description.metadata.userDefined}

    def function(self, name: str | None = None) -> Function:
        """A function by name; the package's default one."""
        known = {e.key: e.value for e in self.model.mlProgram.functions}
        name = name or str(self.model.description.defaultFunctionName) or "main"
        if name not in known:
            raise Damaged(f"{self.path.name} has no function {name}; it has {', '.join(known)}")
        found = known[name]
        blocks = {e.key: e.value for e in found.block_specializations}
        if found.opset not in blocks:
            raise Damaged(f"{self.path.name}: function {name} has no block for its opset {found.opset}")
        operations = tuple(self._operation(m) for m in blocks[found.opset].operations)
        inputs = {i.name: type_of(i.type) for i in found.inputs}
        producer: dict[str, Operation] = {}
        for operation in operations:
            for output in operation.outputs:
                if output in producer or output in inputs:
                    raise Damaged(f"{self.path.name}: two operations make {output}")
                producer[output] = operation
        return Function(name, inputs, operations, tuple(blocks[found.opset].outputs), producer)

    def blobs(self, name: str) -> Blobs:
        """A weight file by the name that the program has for it (@model_path/weights/weight.bin)."""
        if name not in self._files:
            inner = name.removeprefix("@model_path/")
            if (reason := plain_file.inside_fault(self.model_file.parent, inner)) is not None:
                raise Damaged(f"{self.path.name} names weights {name!r}, which {reason}")
            self._files[name] = Blobs(self.model_file.parent / inner)
        return self._files[name]

    def blobs_of(self, file: Path) -> Blobs:
        """A weight file by its path."""
        return self.blobs(f"@model_path/{file.relative_to(self.model_file.parent).as_posix()}")

    def _operation(self, message: Any) -> Operation:
        if message.blocks:
            raise Damaged(f"{message.type} has blocks inside (a branch or a loop), which are not followed")
        inputs = {e.key: tuple(self._argument(b) for b in e.value.arguments) for e in message.inputs}
        attributes = {e.key: e.value for e in message.attributes}
        named = attributes.pop("name", None)
        name = "" if named is None else str(self._constant(named).value)
        inputs |= {key: (self._constant(value),) for key, value in attributes.items()}
        outputs = tuple(o.name for o in message.outputs)
        types = tuple(type_of(o.type) for o in message.outputs)
        return Operation(message.type, name, inputs, outputs, types, message)

    def _argument(self, binding: Any) -> Argument:
        return binding.name if binding.WhichOneof("kind") == "name" else self._constant(binding.value)

    def _constant(self, value: Any) -> Constant:
        if value.WhichOneof("kind") == "blobFileValue":
            place = value.blobFileValue
            return Constant(type_of(value.type), value, self.blobs(place.fileName), place.offset)
        return Constant(type_of(value.type), value, None)


def type_of(message: Any) -> Type:
    """A ValueType."""
    match message.WhichOneof("kind"):
        case "stateType":
            inner = type_of(message.stateType.wrappedType)
            return Type(inner.kind, inner.shape, state=True)
        case "tensorType":
            tensor = message.tensorType
            shape = tuple(
                int(d.constant.size) if d.WhichOneof("kind") == "constant" else None for d in tensor.dimensions
            )
            return Type(KINDS.get(tensor.dataType, f"type {tensor.dataType}"), shape)
        case _:
            return Type("list", ())


def _immediate(value: Any, kind: Type) -> Any:
    if value.WhichOneof("kind") == "list":
        return [_immediate(v.immediateValue, type_of(v.type)) for v in value.list.values]
    field_name = value.tensor.WhichOneof("kind")
    values: Any = getattr(value.tensor, field_name).values if field_name else []
    if field_name == "strings":
        return list(values) if kind.shape else str(values[0])
    if field_name == "bytes":
        count = int(np.prod([d or 0 for d in kind.shape]))
        return _shaped(mil_blobs.numbers(np.frombuffer(values, np.uint8), kind.kind, count), kind)
    if kind.kind not in mil_blobs.NUMPY:
        raise Damaged(f"a literal of type {kind.kind} is not known")
    return _shaped(np.array(list(values), mil_blobs.NUMPY[kind.kind]), kind)


def _shaped(values: NDArray[Any], kind: Type) -> NDArray[Any]:
    shape = [0 if d is None else d for d in kind.shape]
    if values.size != int(np.prod(shape)):
        raise Damaged(f"{values.size} numbers where the shape {shape} is declared")
    return values.reshape(shape)


def _root(path: Path) -> str:
    """Where Manifest.json says that the model lies, inside Data/."""
    try:
        manifest = json_file.read(path / "Manifest.json")
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (Refusal, KeyError, TypeError) as error:
        raise Damaged(f"{path.name} has no usable Manifest.json ({error})") from error
    if (reason := plain_file.inside_fault(path / "Data", root)) is not None:
        raise Damaged(f"{path.name}: Manifest.json names the model {root!r}, which {reason}")
    return str(root)
