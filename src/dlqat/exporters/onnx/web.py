# SPDX-License-Identifier: Apache-2.0
"""How the web form multiplies: integers with integers, in standard operators that WebAssembly kernels are fast at.

onnxruntime-web has no fast kernel for 4-bit weights; MatMulInteger of bytes is 4 to 7 times faster (docs/adr/0006). The
input of a linear is rounded to uint8, symmetric about 128, in blocks that are the weight's groups (the whole row where it
has one scale, 64 inputs in the head). That is the rounding of onnxruntime's own level 4, which runtime_tests/reference/arithmetic.py states:

    top = max|x| of the block        q = round_to_even(x * (127 / top)) + 128        step = top / 127

    one scale per output     PATH.codes [K, N]          y = sum((q - 128) * codes) * step * scales
    blocks of inputs         PATH.codes [G, 1, g, N]    y = sum_G(sum_g((q - 128) * codes) * scales[G] * step[G])

    PATH.codes         4 bits (2 and 3 too): UINT8 [K / 2, N] or [G, 1, g / 2, N], code + 8, two to a byte: the lower halves are
                       the first half of the inputs (of a group's inputs), the upper halves the second.
                       BitwiseAnd 15, BitShift right 4 -> Concat = code + 8 [K, N] or [G, 1, g, N]
                       8 bits: INT8, as the embedding's rows. Cast uint8 -> BitwiseXor 128 = code + 128
    PATH.zero_points   UINT8, [N] or [G, 1, 1, N], raised as the codes: MatMulInteger's own zero-point ([N] -> Expand where there
                       are blocks); on a symmetric grid the constant 8 or 128 has its place
    PATH.scales        float32, [N] or [G, 1, 1, N]

All this is unpacked once, when the file is loaded. INT4 and a Cast would say the same, but onnxruntime-web's build with WebGPU,
the default of transformers.js, has no kernel for that Cast. Bytes are unsigned because x86 without VNNI adds pairs of uint8 x
int8 products in 16 bits, where two of 255 * 127 do not fit (MLAS's AVX2 kernel); it has an exact one for uint8 x uint8.

The inner sums are exact integers; what is rounded is the input, and nothing of the weight. Everything else, names
included, is that of qdq.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from dlqat.architecture import HEAD
from dlqat.exporters.onnx.graph import OnnxGraph
from dlqat.folded import Quantized

FLOAT, UINT8 = int(ir.DataType.FLOAT), int(ir.DataType.UINT8)
MIDDLE = 128
"""The code of 0 in a rounded input."""
HEAD_BLOCK = 64
"""Inputs of the head that are rounded together though its rows have one scale: rounded as whole rows they
double what the form costs in perplexity (docs/adr/0006)."""
MOST = np.array(127, np.float32)
TINY = np.array(1e-30, np.float32)
"""A block of zeros has this maximum, so that nothing is divided by zero."""


def supports(leaf: Quantized) -> str | None:
    """Why `leaf` cannot be multiplied in this way, or None."""
    if _bits(leaf) == 4 and leaf.codes.shape[1] % 2:
        return f"this form holds two inputs in a byte, and {leaf.codes.shape[1]} is odd; use --form qdq, or 8 bits"
    return None


def describe(leaf: Quantized) -> str:
    """How it stands in the file, for people."""
    held = "two codes a byte" if _bits(leaf) == 4 else "INT8 codes"
    where = "per token" if leaf.grid.group_size is None else f"in blocks of {leaf.grid.group_size}"
    return f"{held}, MatMulInteger, input uint8 {where}"


def multiply(g: OnnxGraph, name: str, x: ir.Value, leaf: Quantized) -> ir.Value:
    """x @ dense(leaf).T with x [.., K] rounded in the blocks of the leaf."""
    k, size = leaf.codes.shape[1], _block(name, leaf)
    scales = g.tensor(f"{name}.scales", _scales(leaf.scales, leaf))
    if size is None:
        q, step = _rounded(g, name, x)
        y = g.op("Mul", f"{name}/Mul", [_sums(g, name, q, leaf, size), scales])
        return g.op("Mul", f"{name}/Mul.step", [y, step])
    x = g.op("Reshape", f"{name}/Reshape", [x, g.integers([0, 0, k // size, size])])
    blocks = {"perm": [2, 0, 1, 3]}
    q, step = (g.op("Transpose", f"{name}/Transpose.{i}", [v], blocks) for i, v in enumerate(_rounded(g, name, x)))
    y = g.op("Mul", f"{name}/Mul", [_sums(g, name, q, leaf, size), scales])
    y = g.op("Mul", f"{name}/Mul.step", [y, step])
    return g.op("ReduceSum", f"{name}/ReduceSum", [y, g.integers([0])], {"keepdims": 0})


def _rounded(g: OnnxGraph, name: str, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(codes uint8, as x; step float32 [.., 1]) of x, rounded along its last axis."""
    top = g.op("ReduceMax", f"{name}/top", [g.op("Abs", f"{name}/Abs", [x]), g.integers([-1])], {"keepdims": 1})
    top, most = g.op("Max", f"{name}/Max", [top, g.shared("const.tiny", TINY)]), g.shared("const.127", MOST)
    inverse = g.op("Div", f"{name}/inverse", [most, top])
    q = g.op("Round", f"{name}/Round", [g.op("Mul", f"{name}/Mul.x", [x, inverse])])
    q = g.op("Add", f"{name}/Add.middle", [q, g.shared("const.middle", np.array(MIDDLE, np.float32))])
    return g.op("Cast", f"{name}/Cast.q", [q], {"to": UINT8}), g.op("Div", f"{name}/step", [top, most])


def _sums(g: OnnxGraph, name: str, q: ir.Value, leaf: Quantized, size: int | None) -> ir.Value:
    """The integer sums of blocks of `size`, as float32: exact up to 2^24, and to 2^-24 beyond."""
    raised = 1 << _bits(leaf) - 1
    zero = _byte(g, raised)
    if leaf.zero_points is not None:
        zero = g.tensor(f"{name}.zero_points", (_scales(leaf.zero_points, leaf) + np.int16(raised)).astype(np.uint8))
    if zero.shape is not None and len(zero.shape) == 1 and size is not None:  # one a row, and blocks of the head
        zero = g.op("Expand", f"{name}/Expand", [zero, g.integers([leaf.codes.shape[1] // size, 1, 1, 1])])
    inputs = [q, _weight(g, name, leaf, size), _byte(g, MIDDLE), zero]
    return g.op("Cast", f"{name}/Cast.y", [g.op("MatMulInteger", f"{name}/MatMulInteger", inputs)], {"to": FLOAT})


def _weight(g: OnnxGraph, name: str, leaf: Quantized, size: int | None) -> ir.Value:
    """The codes, raised to unsigned bytes [K, N] or [G, 1, size, N]."""
    codes = np.ascontiguousarray(leaf.codes.numpy().T)
    codes = codes if size is None else codes.reshape(-1, 1, size, codes.shape[1])
    if _bits(leaf) == 8:
        byte = g.op("Cast", f"{name}/Cast", [g.codes(f"{name}.codes", codes, 8)], {"to": UINT8})  # the same bits
        return g.op("BitwiseXor", f"{name}/BitwiseXor", [byte, _byte(g, 128)])
    first, second = np.split((codes + np.int8(8)).view(np.uint8), 2, -2)
    packed = g.tensor(f"{name}.codes", first | second << np.uint8(4))
    first = g.op("BitwiseAnd", f"{name}/BitwiseAnd", [packed, _byte(g, 15)])
    second = g.op("BitShift", f"{name}/BitShift", [packed, _byte(g, 4)], {"direction": "RIGHT"})
    return g.op("Concat", f"{name}/Concat", [first, second], {"axis": codes.ndim - 2})


def _byte(g: OnnxGraph, value: int) -> ir.Value:
    return g.shared(f"const.{value}.uint8", np.array(value, np.uint8))


def _block(name: str, leaf: Quantized) -> int | None:
    """Inputs that are rounded together: the weight's groups; None: a whole row of them."""
    if leaf.grid.group_size is None and name == HEAD and leaf.codes.shape[1] % HEAD_BLOCK == 0:
        return HEAD_BLOCK
    return leaf.grid.group_size


def _scales(values: Tensor, leaf: Quantized) -> NDArray[Any]:
    """Scales or zero-points [out, groups] as this form has them: [out] or [groups, 1, 1, out]."""
    turned = np.ascontiguousarray(values.numpy().T)
    return turned[0] if leaf.grid.group_size is None else turned[:, None, None]


def _bits(leaf: Quantized) -> int:
    return max(4, leaf.grid.container)
