# SPDX-License-Identifier: Apache-2.0
"""The protobuf messages of a Core ML package that we read and write, from Apple's published Model.proto and MIL.proto.

Stated here as a table, so that reading a package needs nothing of coremltools: what reads is then independent of
what wrote, and no import of ten seconds stands before it. Maps are written as the repeated entries that they are on
the wire. Fields that the table leaves out are kept when a message is written again.
"""

from __future__ import annotations

from functools import cache
from typing import Any

SCHEMA = """
Model            1 specificationVersion int32    2 description ModelDescription    502 mlProgram Program
ModelDescription 1 input Feature*    10 output Feature*    13 state Feature*    20 functions FunctionDescription*
                 21 defaultFunctionName string    100 metadata Metadata
FunctionDescription 1 name string    2 input Feature*    3 output Feature*    6 state Feature*
Feature          1 name string    2 shortDescription string    3 type FeatureType
FeatureType      5 multiArrayType ArrayType
ArrayType        1 shape int64*    2 dataType int32    31 shapeRange ShapeRange
ShapeRange       1 sizeRanges SizeRange*
SizeRange        1 lowerBound uint64    2 upperBound int64
Metadata         1 shortDescription string    3 author string    4 license string    100 userDefined StringEntry*
StringEntry      1 key string    2 value string
Program          1 version int64    2 functions FunctionEntry*
FunctionEntry    1 key string    2 value Function
Function         1 inputs NamedValueType*    2 opset string    3 block_specializations BlockEntry*
BlockEntry       1 key string    2 value Block
Block            1 inputs NamedValueType*    2 outputs string*    3 operations Operation*
Operation        1 type string    2 inputs ArgumentEntry*    3 outputs NamedValueType*    4 blocks Block*
                 5 attributes ValueEntry*
ArgumentEntry    1 key string    2 value Argument
Argument         1 arguments Binding*
Binding          1 name string|    2 value Value|
ValueEntry       1 key string    2 value Value
NamedValueType   1 name string    2 type ValueType
ValueType        1 tensorType TensorType|    2 listType Opaque|    5 stateType StateType|
StateType        1 wrappedType ValueType
TensorType       1 dataType int32    2 rank int64    3 dimensions Dimension*
Dimension        1 constant ConstantDimension|    2 unknown Opaque|
ConstantDimension 1 size uint64
Value            2 type ValueType    3 immediateValue ImmediateValue|    5 blobFileValue BlobFileValue|
ImmediateValue   1 tensor TensorValue|    3 list ListValue|
ListValue        1 values Value*
BlobFileValue    1 fileName string    2 offset uint64
TensorValue      1 floats Floats|    2 ints Ints|    3 bools Bools|    4 strings Strings|    5 longInts LongInts|
                 6 doubles Doubles|    7 bytes Bytes|
Floats           1 values float*
Ints             1 values int32*
Bools            1 values bool*
Strings          1 values string*
LongInts         1 values int64*
Doubles          1 values double*
Bytes            1 values bytes
Opaque
"""
"""Message, then number, name, type of its fields; * repeated, | one of which only one is set."""


def new(name: str) -> Any:
    """An empty message."""
    return _classes()[name]()


def parse(content: bytes) -> Any:
    """A Model from its bytes (google.protobuf's DecodeError if they are none)."""
    return _classes()["Model"].FromString(content)


@cache
def _classes() -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file: Any = descriptor_pb2.FileDescriptorProto(name="dlqat_mil.proto", package="dlqat.mil", syntax="proto3")
    words = SCHEMA.split()
    starts = [i for i, w in enumerate(words) if w[0].isupper() and (i == 0 or not words[i - 2].isdigit())]
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        message = file.message_type.add(name=words[start])
        for i in range(start + 1, end, 3):
            _field(message, int(words[i]), words[i + 1], words[i + 2])
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {m.name: pool.FindMessageTypeByName(f"dlqat.mil.{m.name}") for m in file.message_type}
    return {name: message_factory.GetMessageClass(d) for name, d in found.items()}


def _field(message: Any, number: int, name: str, kind: str) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    plain = kind.rstrip("*|")
    field = message.field.add(name=name, number=number)
    field.label = Field.LABEL_REPEATED if kind.endswith("*") else Field.LABEL_OPTIONAL
    if plain[0].isupper():
        field.type, field.type_name = Field.TYPE_MESSAGE, f".dlqat.mil.{plain}"
    else:
        field.type = getattr(Field, f"TYPE_{plain.upper()}")
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="kind")
        field.oneof_index = 0
