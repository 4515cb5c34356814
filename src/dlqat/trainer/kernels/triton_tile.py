# SPDX-License-Identifier: Apache-2.0
# pyright: basic, reportGeneralTypeIssues=false
"""What the Triton kernels share: exact rounding, and one tile of W0 taken to its place on the grid.

Bit-equality with the reference rests on four choices: rounding to integers by the magic number (no libdevice: the
interpreter has none), rounding to bf16 on the bits (gfx90a has no instruction for it, and the interpreter's cast cuts
off), IEEE division, and no fused multiply-add (`enable_fp_fusion=False` at every launch: x * y + magic in one rounding
moves ties). NVIDIA (a constant of the launch) rounds and divides with fewer instructions and the same result.

A tile is [rows, groups, inputs of a group], so that a group's scale is a broadcast and its sum a reduction.
A group that is a whole row (per channel) is cut into tiles of one group each.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_even(x):
    """The nearest integer, ties to even, of |x| < 2^22; larger ones stay beyond the ends of every grid."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def round_bf16(x):
    """The nearest float32 that bf16 holds, ties to even."""
    bits = x.to(tl.uint32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return ((bits >> 16) << 16).to(tl.float32, bitcast=True)


@triton.jit
def narrow(x, dtype: tl.constexpr, NVIDIA: tl.constexpr):
    """x in `dtype`, rounded to nearest, ties to even."""
    if dtype == tl.bfloat16 and not NVIDIA:
        x = round_bf16(x)
    return x.to(dtype)


@triton.jit
def round_scales(x, SCALE_BITS: tl.constexpr):
    """dlqat.grid.snap to so many significant bits, or, of one bit, the smallest power of two >= x; x > 0."""
    bits = x.to(tl.uint32, bitcast=True)
    if SCALE_BITS == 1:
        p = (((bits + 0x7FFFFF) >> 23) << 23).to(tl.float32, bitcast=True)
        return tl.minimum(tl.maximum(p, 6.103515625e-05), 32768.0)
    if SCALE_BITS == 7:
        bits += 0xFFFF + ((bits >> 17) & 1)
        return tl.minimum(tl.maximum(((bits >> 17) << 17).to(tl.float32, bitcast=True), 6.103515625e-05), 65024.0)
    return tl.minimum(tl.maximum(round_bf16(x), 6.103515625e-05), 65280.0)


@triton.jit
def indices(first_row, first_column, out_features, in_features, groups, ROWS: tl.constexpr, GROUPS: tl.constexpr,
            GROUP: tl.constexpr):  # fmt: skip
    """Offsets and masks of a tile in a weight-sized matrix [ROWS, GROUPS, GROUP] and in a scales-sized one."""
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (row < out_features)[:, None, None] & (column < in_features)[None, :, :]
    at = row.to(tl.int64)[:, None, None] * in_features + column[None, :, :]
    # groups == 1: per channel, every tile of the row has the row's scale.
    group = (first_column // GROUP + tl.arange(0, GROUPS)) * (groups > 1)
    inside_scales = (row < out_features)[:, None] & (group < groups)[None, :]
    return at, inside, row.to(tl.int64)[:, None] * groups + group[None, :], inside_scales


@triton.jit
def low_rank(lora_a, lora_b, first_row, first_column, out_features, in_features, rank, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, RANK: tl.constexpr):  # fmt: skip
    """Tiles A [RANK, COLUMNS] and B [ROWS, RANK] in float32, zero beyond their ends."""
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    r = tl.arange(0, RANK)
    a_at = r.to(tl.int64)[:, None] * in_features + column[None, :]
    b_at = row.to(tl.int64)[:, None] * rank + r[None, :]
    a = tl.load(lora_a + a_at, (r < rank)[:, None] & (column < in_features)[None, :], other=0.0).to(tl.float32)
    b = tl.load(lora_b + b_at, (row < out_features)[:, None] & (r < rank)[None, :], other=0.0).to(tl.float32)
    return a, b


@triton.jit
def scales_of(scales, zero_points, magnitude, at, inside, QMIN: tl.constexpr, QMAX: tl.constexpr,
              SCALE_BITS: tl.constexpr):  # fmt: skip
    """s, snap(m s) and the ends of q - z, each [ROWS, GROUPS]; 1 beyond the ends of the matrix."""
    s = round_scales(tl.load(scales + at, inside, other=1.0), SCALE_BITS)
    folded = s
    if magnitude is not None:
        folded = round_scales(tl.load(magnitude + at, inside, other=1.0) * s, SCALE_BITS)
    z = tl.zeros_like(s)
    if zero_points is not None:
        z = tl.load(zero_points + at, inside, other=0).to(tl.float32)
    return s, folded, QMIN - z, QMAX - z


@triton.jit
def latent_levels(weight, offset, product, at, inside, s, scaling, BASE_UNIT: tl.constexpr, NVIDIA: tl.constexpr):
    """V / s [ROWS, GROUPS, GROUP]; `product` = B A of the tile, or None."""
    w = tl.load(weight + at, inside, other=0)
    v = w.to(tl.float32)
    if weight.dtype.element_ty == tl.int8:  # the base in fixed point on the grid (dlqat.adapter.fixed_point)
        v = (v + 0.5) * (s * BASE_UNIT)[:, :, None]
    if product is not None:
        v = v + scaling * product
    if offset is not None:
        v = v + tl.load(offset + at, inside, other=0).to(tl.float32) * (s * 0.015625)[:, :, None]
    divisor = tl.broadcast_to(s[:, :, None], v.shape)
    if NVIDIA:
        # Markstein's theorem: with r = 1 / s and q = v r, each rounded, q + r (v - q s) in two fused steps is v / s
        # rounded once. One division a group, then three instructions a weight.
        r = tl.broadcast_to(tl.div_rn(1.0, s)[:, :, None], v.shape)
        q = v * r
        return tl.fma(tl.fma(-q, divisor, v), r, q)
    return tl.div_rn(v, divisor)
