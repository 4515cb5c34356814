# SPDX-License-Identifier: Apache-2.0
"""How the web form multiplies: integers with integers, in standard operators that WebAssembly kernels are fast at.

onnxruntime-web has no fast kernel for 4-bit weights; MatMulInteger of bytes is 4 to 7 times faster (docs/adr/0006). The
input of a linear is rounded to uint8, symmetric about 128, in blocks that are the weight's groups (the whole row where it
has one scale, 64 inputs in the head). That is the rounding of onnxruntime's own level 4, which runtime_tests/reference/arithmetic.py states:

    top = max|x| of the block        q = round_to_even(x * (127 / top)) + 128        step = top / 127

    one scale per output     PATH.codes [K, N]          y = sum((q - 128) * codes) * step * scales
    blocks of inputs         PATH.codes [G, 1, g, N]    y = sum_G(sum_g((q - 128) * codes) * scales[G] * step[G])

    PATH.codes         INT4 (2- and 3-bit codes too), cast to INT8 when the file is loaded; or INT8, turned into UINT8 there:
                       code + 128, with 128 as zero-point. x86 without VNNI adds pairs of uint8 x int8 products in 16
                       bits, where two of 255 * 127 do not fit (MLAS's AVX2 kernel); it has an exact one for uint8 x uint8
    PATH.zero_points   as the codes, [N] or [G, 1, 1, N], subtracted when the file is loaded; absent on a symmetric grid
    PATH.scales        float32, [N] or [G, 1, 1, N]

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

FLOAT, INT8, INT32, UINT8 = (
    int(t) for t in (ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.UINT8)
)
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
    if leaf.grid.bits == 8 and not leaf.grid.symmetric:
        return "8-bit codes less a zero-point need 9 bits, and MatMulInteger has bytes; train it symmetric, or use --form qdq"
    return None


def describe(leaf: Quantized) -> str:
    """How it stands in the file, for people."""
    where = "per token" if leaf.grid.group_size is None else f"in blocks of {leaf.grid.group_size}"
    return f"INT{_bits(leaf)} codes, MatMulInteger, input uint8 {where}"


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
    codes = leaf.codes.numpy().T
    codes = codes if size is None else codes.reshape(-1, 1, size, codes.shape[1])
    weight = g.codes(f"{name}.codes", np.ascontiguousarray(codes), _bits(leaf))
    if leaf.zero_points is not None:
        zero_points = g.codes(f"{name}.zero_points", _scales(leaf.zero_points, leaf), _bits(leaf))
        wide = [g.op("Cast", f"{name}/Cast.{n}", [v], {"to": INT32}) for n, v in (("c", weight), ("z", zero_points))]
        weight = g.op("Sub", f"{name}/Sub", wide)
    middle = g.shared("const.middle.uint8", np.array(MIDDLE, np.uint8))
    if leaf.grid.bits == 8 and leaf.zero_points is None:
        weight = g.op("Cast", f"{name}/Cast", [weight], {"to": UINT8})  # the same bits
        inputs = [q, g.op("BitwiseXor", f"{name}/BitwiseXor", [weight, middle]), middle, middle]
    else:
        inputs = [q, g.op("Cast", f"{name}/Cast", [weight], {"to": INT8}), middle]
    sums = g.op("MatMulInteger", f"{name}/MatMulInteger", inputs)
    return g.op("Cast", f"{name}/Cast.y", [sums], {"to": FLOAT})


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
    return 8 if leaf.grid.bits == 8 else 4
