# SPDX-License-Identifier: Apache-2.0
"""How an ONNX operator lays out codes, scales and zero-points, turned into Integers.

Specifications: DequantizeLinear (onnx Operators.md), MatMulNBits and GatherBlockQuantized (onnxruntime
ContribOperators.md). `sources` names the initializers behind "codes", "scales" and "zero_points".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.runtime_tests.readers.contents import Integers, Unreadable
from dlqat.runtime_tests.readers.onnx.file import BITS, UNSIGNED, OnnxFile, attributes, unpack


def _signed(patterns: NDArray[np.uint8], bits: int, *, unsigned: bool) -> NDArray[np.int8]:
    """Bit patterns as signed numbers: two's complement, or 2^(bits-1) less than the unsigned number."""
    half = 1 << (bits - 1)
    if unsigned:
        return (patterns - np.uint8(half)).view(np.int8) if bits == 8 else patterns.view(np.int8) - np.int8(half)
    return patterns.view(np.int8) if bits == 8 else (patterns ^ half).view(np.int8) - np.int8(half)


def stored(file: OnnxFile, name: str) -> NDArray[np.int8]:
    """The integers of an initializer, signed as dlqat.grid has them."""
    tensor = file.initializers[name]
    return _signed(file.integers(name), BITS[tensor.data_type], unsigned=tensor.data_type in UNSIGNED)


def _zero_points(file: OnnxFile, sources: dict[str, str], like: NDArray[np.float32]) -> NDArray[np.int8] | None:
    """DequantizeLinear without a zero-point subtracts 0: for an unsigned code that is -2^(bits-1) here."""
    if "zero_points" in sources:
        if (found := stored(file, sources["zero_points"])).shape != like.shape:
            raise Unreadable(f"{sources['zero_points']}: shape {found.shape}, the scales have {like.shape}")
        return found
    kind = file.initializers[sources["codes"]].data_type
    if kind not in UNSIGNED:
        return None
    return np.full(like.shape, -(1 << (BITS[kind] - 1)), np.int8)


def columns(file: OnnxFile, dq: Any, sources: dict[str, str]) -> Integers:
    """codes [in, out]: blocks along axis 0, or one scale per column."""
    return _turned(file, dq, sources, per_channel_axis=1)


def picked_columns(file: OnnxFile, dq: Any, sources: dict[str, str]) -> Integers:
    """codes [in, out], columns picked: blocks along axis 0; one scale per column is one block of all inputs."""
    return _turned(file, dq, sources, per_channel_axis=None)


def _turned(file: OnnxFile, dq: Any, sources: dict[str, str], per_channel_axis: int | None) -> Integers:
    codes, scales = stored(file, sources["codes"]), file.floats(sources["scales"])
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
    return Integers(codes.T, scales.T, None if zero_points is None else zero_points.T, block or codes.shape[0])


def rows(file: OnnxFile, dq: Any, sources: dict[str, str], *, gathered: bool = False) -> Integers:
    """codes [out, in]: blocks along the last axis, or one scale per row."""
    codes, scales = stored(file, sources["codes"]), file.floats(sources["scales"])
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
    return Integers(codes, scales, zero_points, block or codes.shape[1])


def packed(file: OnnxFile, node: Any, sources: dict[str, str], kept: int | None = None) -> Integers:
    """Packed rows of blocks, the default zero-point 2^(bits-1) (MatMulNBits, GatherBlockQuantized on uint8).

    `kept`: how many codes of a gathered row are used, if not all; the others fill up its last block.
    """
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
    filled = blocks * block if node.op_type == "MatMulNBits" else inputs  # the last block is filled up, or is not
    if raw.size * 8 != rows * filled * bits:
        raise Unreadable(f"{node.name}: {raw.size} bytes are not {rows} rows of {filled} codes of {bits} bits")
    if kept is not None and not inputs - block < kept <= inputs:
        raise Unreadable(f"{node.name}: {kept} of {inputs} codes of a row are used, which is more than a block less")
    codes = _signed(unpack(raw.reshape(rows, -1), bits), bits, unsigned=True)[:, : kept or inputs]
    scales = _shaped(node, file.floats(sources["scales"]), rows, blocks)
    if "zero_points" not in sources:
        return Integers(codes, scales, None, block)
    packed_zeros = _shaped(node, file.raw(sources["zero_points"]), rows, -(-blocks * bits // 8))
    zero_points = np.ascontiguousarray(unpack(packed_zeros, bits)[:, :blocks])
    return Integers(codes, scales, _signed(zero_points, bits, unsigned=True), block)


def _shaped(node: Any, values: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    if values.size != rows * columns:
        raise Unreadable(f"{node.name}: {values.size} values where {rows} rows of {columns} are needed")
    return values.reshape(rows, columns)
