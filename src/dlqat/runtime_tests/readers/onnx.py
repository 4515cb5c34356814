# SPDX-License-Identifier: Apache-2.0
"""Integers out of an ONNX file, found by walking from what multiplies to the bytes that it uses.

    MatMul <- DequantizeLinear <- codes, scales, zero-points           the qdq form
    MatMulNBits <- packed bytes, scales, packed zero-points            the ort form (com.microsoft)
    DequantizeLinear <- Gather(codes), Gather(scales)                  embedding, tokens picked first
    Gather <- DequantizeLinear <- codes, scales                        embedding, dequantized first
    GatherBlockQuantized <- packed bytes, scales                       embedding on the head's bytes

A weight that reaches its operation in any other way is a fault: what cannot be explained is not proved.
Layouts follow the operators' specifications (onnx Operators.md, onnxruntime ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from dlqat.runtime_tests.readers.onnx_cut import cut
from dlqat.runtime_tests.readers.onnx_file import BITS, UNSIGNED, OnnxFile, attributes, repeated, unpack
from dlqat.runtime_tests.readers.reader import Contents, Integers, Span, Unreadable, Weight


def read(program: Path) -> Contents:
    """Walk the graph. Unreadable if the file is damaged; what is merely odd becomes a fault in Contents."""
    file = OnnxFile(program)
    faults: list[str] = []
    weights: list[Weight] = []
    floats: dict[str, str] = {}
    for node in file.nodes:
        if not any(o in file.used for o in node.output):
            continue
        try:
            if (weight := _weight(file, node)) is not None:
                weights.append(weight)
            elif (dense := _dense(file, node)) is not None:
                floats[dense[0]] = dense[1]
        except Unreadable as error:
            faults.append(str(error))
    faults += [f"{n}: more than one operation claims to be this layer" for n in repeated(_claims(weights))]
    faults += _unexplained(file, weights)
    form = next((p.value for p in file.model.metadata_props if p.key == "dlqat.form"), "unknown")
    return Contents(form, tuple(weights), _labels(file), _tensors(file, floats), tuple(faults))


def _claims(weights: list[Weight]) -> Iterator[str]:
    for weight in weights:
        yield f"{weight.name} ({weight.kind})"


def _weight(file: OnnxFile, node: Any) -> Weight | None:
    """The multiplication that ends in `node`, or None if it has no integers."""
    match node.op_type:
        case "MatMulNBits":
            _refuse_extras(node)
            sources = _sources(file, node, {"codes": 1, "scales": 2, "zero_points": 3})
            return _as_weight(file, node, "matmul", _stem(node), sources, partial(_packed, file, node, sources))
        case "GatherBlockQuantized":
            sources = _sources(file, node, {"codes": 0, "scales": 2, "zero_points": 3})
            return _as_weight(
                file, node, "gather", _stem(node), sources, partial(_packed, file, node, sources), activation=1
            )
        case "MatMul" if (dq := _constant_dq(file, node.input[1])) is not None:
            sources = _sources(file, dq, {"codes": 0, "scales": 1, "zero_points": 2})
            return _as_weight(file, node, "matmul", _same_stem(node, dq), sources, partial(_columns, file, dq, sources))
        case "Gather" if (dq := _constant_dq(file, node.input[0])) is not None:
            sources = _sources(file, dq, {"codes": 0, "scales": 1, "zero_points": 2})
            return _as_weight(
                file, node, "gather", _same_stem(node, dq), sources, partial(_rows, file, dq, sources), activation=1
            )
        case "DequantizeLinear" if node.input[0] not in file.constants:
            return _picked(file, node)
        case _:
            return None


def _as_weight(
    file: OnnxFile,
    node: Any,
    kind: Literal["matmul", "gather"],
    name: str,
    sources: dict[str, str],
    load: Callable[[], Integers],
    activation: int = 0,
) -> Weight:
    entry = node.input[activation]
    biased = node.op_type == "MatMulNBits" and len(node.input) > 5 and bool(node.input[5])
    return Weight(
        name, kind, load, _spans(file, sources), partial(cut, file, node.output[0], entry, kind), entry, biased
    )


def _spans(file: OnnxFile, sources: dict[str, str]) -> dict[str, Span]:
    return {what: span for what, name in sources.items() if (span := file.span(name)) is not None}


def _dense(file: OnnxFile, node: Any) -> tuple[str, str] | None:
    """(parameter name, initializer) of a linear or embedding that stays float; linears stand as [in, out]."""
    if node.op_type not in ("MatMul", "Gather", "Gemm"):
        return None
    constant = [n for n in node.input if n in file.constants]
    if not constant or all(n in file.constants for n in node.output):
        return None
    source = node.input[1 if node.op_type == "MatMul" else 0]
    if node.op_type == "Gather":
        is_table = source in file.initializers and len(file.initializers[source].dims) == 2
        return (f"{_stem(node)}.weight", source) if is_table and source.endswith(".weight") else None
    if node.op_type == "Gemm" or source not in file.initializers:
        raise Unreadable(f"{node.name}: {node.op_type} with a weight that the reader cannot follow ({constant[0]})")
    return f"{_stem(node)}.weight", source


def _constant_dq(file: OnnxFile, name: str) -> Any | None:
    node = file.producer.get(name)
    return node if node is not None and node.op_type == "DequantizeLinear" and name in file.constants else None


def _picked(file: OnnxFile, dq: Any) -> Weight:
    """A DequantizeLinear of the codes and scales that Gather picked for the tokens.

    Codes [out, in], rows picked: [batch, sequence, in]. Codes [in, out] as a head has them, columns picked:
    [in, batch, sequence], which a Transpose then turns.
    """
    picks = [_pick(file, dq, name) for name in dq.input if name]
    sources = dict(
        zip(("codes", "scales", "zero_points"), (_initializer(file, p.input[0], dq) for p in picks), strict=False)
    )
    if len({p.input[1] for p in picks}) != 1:
        raise Unreadable(f"{dq.name}: codes and scales are picked by different indices")
    axes = [attributes(p).get("axis", 0) for p in picks]
    output, load = dq.output[0], partial(_rows, file, dq, sources, gathered=True)
    if columns := axes[0] == 1:
        turn = file.consumers.get(output, [])
        if len(turn) != 1 or turn[0].op_type != "Transpose" or attributes(turn[0]).get("perm") != [1, 2, 0]:
            raise Unreadable(f"{dq.name}: columns are picked, but not turned to rows")
        output, load = turn[0].output[0], partial(_picked_columns, file, dq, sources)
    for source, axis in zip(list(sources.values())[1:], axes[1:], strict=True):
        if axis != (1 if columns and len(file.initializers[source].dims) == 2 else 0):
            raise Unreadable(f"{dq.name}: {source} is picked along axis {axis}")
    entry = picks[0].input[1]
    return Weight(
        _stem(dq), "gather", load, _spans(file, sources), partial(cut, file, output, entry, "gather"), entry, False
    )


def _pick(file: OnnxFile, dq: Any, name: str) -> Any:
    """The Gather behind an input of `dq`, an Unsqueeze between allowed."""
    node = file.producer.get(name)
    if node is not None and node.op_type == "Unsqueeze":
        node = file.producer.get(node.input[0])
    if node is None or node.op_type != "Gather" or attributes(node).get("axis", 0) not in (0, 1):
        raise Unreadable(f"{dq.name}: {name} is no stored tensor and no part of one that Gather picked")
    return node


def _sources(file: OnnxFile, node: Any, slots: dict[str, int]) -> dict[str, str]:
    return {
        what: _initializer(file, node.input[slot], node)
        for what, slot in slots.items()
        if len(node.input) > slot and node.input[slot]
    }


def _initializer(file: OnnxFile, name: str, user: Any) -> str:
    """The initializer behind `name`; a Reshape between keeps the bytes as they are."""
    while name in file.producer and file.producer[name].op_type == "Reshape":
        name = file.producer[name].input[0]
    if name not in file.initializers:
        raise Unreadable(f"{user.name}: {name} is no stored tensor, so its bytes cannot be proved")
    return name


def _refuse_extras(node: Any) -> None:
    if len(node.input) > 4 and node.input[4]:
        raise Unreadable(f"{node.name}: g_idx permutes its inputs, which the reader does not follow")


def _stem(node: Any) -> str:
    stem, slash, _ = node.name.rpartition("/")
    if not slash:
        raise Unreadable(
            f"{node.op_type} {node.name!r} multiplies with stored numbers but names no layer (PATH/{node.op_type})"
        )
    return stem


def _same_stem(node: Any, dq: Any) -> str:
    if (stem := _stem(node)) != _stem(dq):
        raise Unreadable(f"{node.name} multiplies with {dq.name}: two different layers")
    return stem


def _signed(patterns: NDArray[np.uint8], bits: int, *, unsigned: bool) -> NDArray[np.int8]:
    """Bit patterns as signed numbers: two's complement, or 2^(bits-1) less than the unsigned number."""
    half = 1 << (bits - 1)
    if unsigned:
        return (patterns - np.uint8(half)).view(np.int8) if bits == 8 else patterns.view(np.int8) - np.int8(half)
    return patterns.view(np.int8) if bits == 8 else (patterns ^ half).view(np.int8) - np.int8(half)


def _stored(file: OnnxFile, name: str) -> NDArray[np.int8]:
    tensor = file.initializers[name]
    return _signed(file.integers(name), BITS[tensor.data_type], unsigned=tensor.data_type in UNSIGNED)


def _zero_points(file: OnnxFile, sources: dict[str, str], like: NDArray[np.float32]) -> NDArray[np.int8] | None:
    """DequantizeLinear without a zero-point subtracts 0: for an unsigned code that is -2^(bits-1) here."""
    if "zero_points" in sources:
        return _stored(file, sources["zero_points"])
    kind = file.initializers[sources["codes"]].data_type
    if kind not in UNSIGNED:
        return None
    return np.full(like.shape, -(1 << (BITS[kind] - 1)), np.int8)


def _columns(file: OnnxFile, dq: Any, sources: dict[str, str]) -> Integers:
    """codes [in, out]: blocks along axis 0, or one scale per column."""
    return _turned(file, dq, sources, per_channel_axis=1)


def _picked_columns(file: OnnxFile, dq: Any, sources: dict[str, str]) -> Integers:
    """codes [in, out], columns picked: blocks along axis 0; one scale per column is one block of all inputs."""
    return _turned(file, dq, sources, per_channel_axis=None)


def _turned(file: OnnxFile, dq: Any, sources: dict[str, str], per_channel_axis: int | None) -> Integers:
    codes, scales = _stored(file, sources["codes"]), file.floats(sources["scales"])
    zero_points = _zero_points(file, sources, scales)
    axis, block = attributes(dq).get("axis", 1), attributes(dq).get("block_size", 0)
    if scales.ndim == 1:
        scales, zero_points = scales[None], None if zero_points is None else zero_points[None]
        whole = axis == per_channel_axis and not block
        fits = whole or (per_channel_axis is None and axis == 0 and block >= codes.shape[0])
    else:
        fits = axis == 0 and bool(block) and scales.shape[0] == -(-codes.shape[0] // (block or 1))
    if not fits or scales.shape[1] != codes.shape[1]:
        raise Unreadable(f"{dq.name}: scales {scales.shape} along axis {axis}, block {block}, for codes {codes.shape}")
    return Integers(codes.T, scales.T, None if zero_points is None else zero_points.T)


def _rows(file: OnnxFile, dq: Any, sources: dict[str, str], *, gathered: bool = False) -> Integers:
    """codes [out, in]: blocks along the last axis, or one scale per row."""
    codes, scales = _stored(file, sources["codes"]), file.floats(sources["scales"])
    zero_points = _zero_points(file, sources, scales)
    last = 2 if gathered else 1  # Gather put batch and sequence before the row
    axis, block = attributes(dq).get("axis", 1) % (last + 1), attributes(dq).get("block_size", 0)
    if scales.ndim == 1:
        fits = axis == 0 and not block and not gathered
        scales, zero_points = scales[:, None], None if zero_points is None else zero_points[:, None]
    else:
        fits = axis == last and bool(block) and scales.shape[1] == -(-codes.shape[1] // (block or 1))
    if not fits or scales.shape[0] != codes.shape[0]:
        raise Unreadable(f"{dq.name}: scales {scales.shape} along axis {axis}, block {block}, for codes {codes.shape}")
    return Integers(codes, scales, zero_points)


def _packed(file: OnnxFile, node: Any, sources: dict[str, str]) -> Integers:
    """Packed rows of blocks, the default zero-point 2^(bits-1) (MatMulNBits, GatherBlockQuantized on uint8)."""
    have = attributes(node)
    bits, block = have.get("bits", 4), have["block_size"]
    if bits not in (2, 4, 8):
        raise Unreadable(f"{node.name}: {bits} bits are not known to the reader")
    raw = file.raw(sources["codes"])
    if node.op_type == "MatMulNBits":
        rows, inputs = have["N"], have["K"]
    else:
        if have.get("gather_axis", 0) != 0 or have.get("quantize_axis", 1) != 1:
            raise Unreadable(f"{node.name}: gathers along another axis than rows")
        rows = file.initializers[sources["scales"]].dims[0]
        inputs = raw.size * 8 // bits // rows
    blocks = -(-inputs // block)
    stored = blocks * block if node.op_type == "MatMulNBits" else inputs  # the last block is filled up, or is not
    if raw.size * 8 != rows * stored * bits:
        raise Unreadable(f"{node.name}: {raw.size} bytes are not {rows} rows of {stored} codes of {bits} bits")
    codes = _signed(unpack(raw.reshape(rows, -1), bits), bits, unsigned=True)[:, :inputs]
    scales = file.floats(sources["scales"]).reshape(rows, blocks)
    if "zero_points" not in sources:
        return Integers(codes, scales, None)
    packed = unpack(file.raw(sources["zero_points"]).reshape(rows, -1), bits)[:, :blocks]
    return Integers(codes, scales, _signed(np.ascontiguousarray(packed), bits, unsigned=True))


def _labels(file: OnnxFile) -> dict[str, NDArray[np.int32]]:
    """Stored indices of a Gather on a computed value: the labels of a clustered layer."""
    return {
        node.input[1]: file.array(node.input[1]).astype(np.int32)
        for node in file.nodes
        if node.op_type == "Gather" and node.input[1] in file.initializers and node.input[1].endswith(".labels")
    }


def _tensors(file: OnnxFile, dense: dict[str, str]) -> dict[str, NDArray[np.float32]]:
    """Float initializers in use; those of linears under their parameter's name and turned to [out, in]."""
    found: dict[str, NDArray[np.float32]] = {}
    turned = set(dense.values())
    for name, tensor in file.initializers.items():
        if name in file.used and name not in turned and tensor.data_type == TensorProto.FLOAT:
            found[name] = file.floats(name)
    for parameter, name in dense.items():
        gathers = all(n.op_type == "Gather" for n in file.consumers[name])
        found[parameter] = file.floats(name) if gathers else file.floats(name).T
    return found


def _unexplained(file: OnnxFile, weights: list[Weight]) -> Iterator[str]:
    """Stored numbers of the model that nothing uses, and integers that no known multiplication uses."""
    explained = {init for w in weights for init in _stored_by(w)}
    for name, tensor in file.initializers.items():
        if tensor.data_type not in (*BITS, TensorProto.FLOAT):
            continue  # shapes and axes
        if name not in file.used:
            yield f"{name}: stored, but no output depends on it"
        elif tensor.data_type in BITS and name not in explained:
            users = ", ".join(sorted({n.op_type for n in file.consumers.get(name, [])}))
            yield f"{name}: integers used by {users}, in a way that the reader does not know"


def _stored_by(weight: Weight) -> list[str]:
    load: Any = weight.load
    return list(load.args[-1].values())
