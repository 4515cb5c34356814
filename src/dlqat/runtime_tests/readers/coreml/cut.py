# SPDX-License-Identifier: Apache-2.0
"""One multiplication of a package as a small package of its own, with the same bytes: rung L1 runs it alone.

A package is a folder, and a program is handed on as bytes: so it is a zip file of linear.mlpackage.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import Any

from dlqat.mil import blobs as mil_blobs
from dlqat.mil import schema
from dlqat.mil.blobs import Blobs
from dlqat.mil.program import Constant, Function, Operation, Package

INPUT, OUTPUT = "x", "y"
FOLDER, CORE = "linear.mlpackage", "com.apple.CoreML"
ROWS = 4096
"""The longest input that its description allows."""
FLOAT16, INT32 = 65552, 131104
"""ArrayFeatureType.ArrayDataType."""


def cut(package: Package, function: Function, operation: Operation) -> bytes:
    """`operation` (linear or gather) with the constants that it uses; input INPUT, output OUTPUT."""
    blobs, offsets = _blobs(needed := _needed(function, operation))
    content, moved = mil_blobs.write(blobs, offsets) if blobs is not None else (b"", {})
    model = _model(package, function, operation, needed, moved)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{FOLDER}/Manifest.json", _manifest(weights=bool(content)))
        archive.writestr(f"{FOLDER}/Data/{CORE}/model.mlmodel", model.SerializeToString(deterministic=True))
        if content:
            archive.writestr(f"{FOLDER}/Data/{CORE}/weights/weight.bin", content)
    return file.getvalue()


def _needed(function: Function, operation: Operation) -> list[Operation]:
    """The constants behind an operation, in program order, and itself."""
    names, stack = set[str](), [operation]
    while stack:
        for name in stack.pop().names():
            source = function.producer.get(name)
            if source is not None and (source.kind == "const" or source.kind.startswith("constexpr_")):
                names.add(name)
                stack.append(source)
    return [o for o in function.operations if names.intersection(o.outputs)] + [operation]


def _blobs(operations: list[Operation]) -> tuple[Blobs | None, list[int]]:
    found = [a for o in operations for bound in o.inputs.values() for a in bound if isinstance(a, Constant) and a.blobs]
    return (found[0].blobs if found else None), sorted({c.offset for c in found})


def _model(
    package: Package, function: Function, operation: Operation, needed: list[Operation], moved: dict[int, int]
) -> Any:
    """The Model message: one function of one block."""
    opset = next(e.value.opset for e in package.model.mlProgram.functions if e.key == function.name)
    model = schema.new("Model")
    model.specificationVersion = package.model.specificationVersion
    model.mlProgram.version = 1
    entry = model.mlProgram.functions.add(key="main")
    entry.value.opset = opset
    block = entry.value.block_specializations.add(key=opset).value
    block.outputs.append(OUTPUT)
    for one in needed:
        block.operations.add().CopyFrom(one.message)
        _relocate(block.operations[-1], moved)
    last, given = block.operations[-1], _given(function, operation)
    next(e for e in last.inputs if e.key == given.argument).value.arguments[0].name = INPUT
    last.outputs[0].name = OUTPUT
    _declare(entry.value.inputs.add(name=INPUT), given)
    _feature(model.description.input.add(name=INPUT), given)
    model.description.output.add(name=OUTPUT).type.multiArrayType.dataType = FLOAT16
    return model


@dataclass(frozen=True, slots=True)
class _Given:
    """What is fed: the argument, its MIL and Core ML types, its shape (None: any length)."""

    argument: str
    kind: int
    array: int
    shape: tuple[int | None, int | None]


def _given(function: Function, operation: Operation) -> _Given:
    """Rows float16 [?, in] of a linear, ids int32 [1, ?] of a gather."""
    if operation.kind == "linear":
        weight = function.producer[str(operation.inputs["weight"][0])]
        return _Given("x", 10, FLOAT16, (None, weight.types[0].shape[1]))
    return _Given("indices", 23, INT32, (1, None))


def _declare(named: Any, given: _Given) -> None:
    """The type of the function's input."""
    tensor = named.type.tensorType
    tensor.dataType, tensor.rank = given.kind, len(given.shape)
    for size in given.shape:
        dimension = tensor.dimensions.add()
        if size is None:
            dimension.unknown.SetInParent()
        else:
            dimension.constant.size = size


def _feature(feature: Any, given: _Given) -> None:
    """What Core ML tells callers about the input."""
    array = feature.type.multiArrayType
    array.dataType = given.array
    array.shape.extend(size or 1 for size in given.shape)
    for size in given.shape:
        array.shapeRange.sizeRanges.add(lowerBound=size or 1, upperBound=size or ROWS)


def _relocate(message: Any, moved: dict[int, int]) -> None:
    """Blob references of a copied operation, to the places in the new weight file."""
    values = [e.value for e in message.attributes]
    values += [b.value for e in message.inputs for b in e.value.arguments if b.WhichOneof("kind") == "value"]
    for value in values:
        if value.WhichOneof("kind") == "blobFileValue":
            value.blobFileValue.fileName = "@model_path/weights/weight.bin"
            value.blobFileValue.offset = moved[value.blobFileValue.offset]


def _manifest(*, weights: bool) -> str:
    def entry(name: str) -> dict[str, str]:
        return {"author": CORE, "description": f"Core ML {name}", "name": name, "path": f"{CORE}/{name}"}

    entries = {"0": entry("model.mlmodel")} | ({"1": entry("weights")} if weights else {})
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": "0"}
    return json.dumps(content)
