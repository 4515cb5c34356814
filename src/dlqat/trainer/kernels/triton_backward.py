# SPDX-License-Identifier: Apache-2.0
# pyright: basic, reportGeneralTypeIssues=false
"""dm, dA, dB, ds and W' again from G = dL/dW', in one pass over W0 and G: the codes are made anew.

Bytes a weight, bf16: 2 (W0) + 2 (G, which the vendor's matrix product has written) + 2 (W'). Sums over rows (dA) and
over columns (dB) leave a program as partial sums, [strips, r, in] and [tiles, out, r] float32, added by the caller in a
fixed order: the result does not depend on the order in which programs run, as it would with atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlqat.trainer.kernels.triton_tile import indices, latent_levels, low_rank, narrow, round_even, scales_of


@triton.jit
def epilogue(
    g, weight, scales, zero_points, magnitude, lora_a, lora_b, offset, made, grad_magnitude, grad_scales, grad_b,
    first_row, tile, out_features, in_features, groups, parts, rank, scaling, lsq,
    QMIN: tl.constexpr, QMAX: tl.constexpr, SCALE_BITS: tl.constexpr, BASE_UNIT: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, RANK: tl.constexpr,
    DOT: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """Everything of one tile but dA, whose contribution [RANK, COLUMNS] it returns (None without LoRA).

    g [ROWS, GROUPS, GROUP] float32, zero beyond the ends. grad_magnitude, grad_scales [out, parts]: parts is
    `groups`, or the tiles of a row where it is one group.
    """
    COLUMNS: tl.constexpr = GROUPS * GROUP
    first_column = tile * COLUMNS
    at, inside, at_scales, inside_scales = indices(
        first_row, first_column, out_features, in_features, groups, ROWS, GROUPS, GROUP
    )
    s, folded, low, high = scales_of(scales, zero_points, magnitude, at_scales, inside_scales, QMIN, QMAX, SCALE_BITS)
    product = None
    if lora_a is not None:
        a, b = low_rank(lora_a, lora_b, first_row, first_column, out_features, in_features, rank, ROWS, COLUMNS, RANK)
        product = tl.dot(b, a, input_precision=DOT).reshape([ROWS, GROUPS, GROUP])
    v = latent_levels(weight, offset, product, at, inside, s, scaling, BASE_UNIT, NVIDIA)
    clipped = tl.minimum(tl.maximum(v, low[:, :, None]), high[:, :, None])
    levels = round_even(clipped)
    tl.store(made + at, narrow(levels * folded[:, :, None], made.dtype.element_ty, NVIDIA), inside)

    row = first_row + tl.arange(0, ROWS)
    part = tile * GROUPS + tl.arange(0, GROUPS)
    at_parts = row.to(tl.int64)[:, None] * parts + part[None, :]
    inside_parts = (row < out_features)[:, None] & (part < parts)[None, :]
    if grad_magnitude is not None:
        tl.store(grad_magnitude + at_parts, tl.sum(g * levels, axis=2) * s, inside_parts)
    if grad_scales is not None:
        still = v
        if offset is not None:
            still = v - tl.load(offset + at, inside, other=0).to(tl.float32) * 0.015625
        error = levels - tl.where(clipped == v, still, 0.0)
        tl.store(grad_scales + at_parts, tl.sum(g * error, axis=2) * lsq, inside_parts)
    grad_a = None
    if lora_a is not None:
        gv = tl.where(clipped == v, g, 0.0)
        if magnitude is not None:
            gv = gv * tl.div_rn(folded, s)[:, :, None]
        gv = gv.reshape([ROWS, COLUMNS])
        r = tl.arange(0, RANK)
        at_b = (tile.to(tl.int64) * out_features + row)[:, None] * rank + r[None, :]
        grad = tl.dot(gv, tl.trans(a), input_precision=DOT) * scaling
        tl.store(grad_b + at_b, grad, (row < out_features)[:, None] & (r < rank)[None, :])
        grad_a = tl.dot(tl.trans(b), gv, input_precision=DOT)
    return grad_a


@triton.jit
def store_grad_a(grad_a, value, strip, tile, in_features, rank, COLUMNS: tl.constexpr, RANK: tl.constexpr):
    """value [RANK, COLUMNS] into the partial sums grad_a [strips, rank, in]."""
    r = tl.arange(0, RANK)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    at = (strip.to(tl.int64) * rank + r)[:, None] * in_features + column[None, :]
    tl.store(grad_a + at, value, (r < rank)[:, None] & (column < in_features)[None, :])


@triton.jit
def weight_backward_kernel(
    g, weight, scales, zero_points, magnitude, lora_a, lora_b, offset, made,
    grad_magnitude, grad_scales, grad_a, grad_b,
    out_features, in_features, groups, parts, rank, scaling, lsq,
    QMIN: tl.constexpr, QMAX: tl.constexpr, SCALE_BITS: tl.constexpr, BASE_UNIT: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, RANK: tl.constexpr, STEPS: tl.constexpr,
    DOT: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """G [out, in] from memory; grid (column tiles, strips of STEPS * ROWS rows)."""
    COLUMNS: tl.constexpr = GROUPS * GROUP
    tile, strip = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([RANK, COLUMNS], tl.float32)
    for step in range(STEPS):
        first_row = (strip * STEPS + step) * ROWS
        at, inside, _, _ = indices(first_row, tile * COLUMNS, out_features, in_features, groups, ROWS, GROUPS, GROUP)
        part = epilogue(
            tl.load(g + at, inside, other=0.0).to(tl.float32),
            weight, scales, zero_points, magnitude, lora_a, lora_b, offset, made, grad_magnitude, grad_scales, grad_b,
            first_row, tile, out_features, in_features, groups, parts, rank, scaling, lsq,
            QMIN, QMAX, SCALE_BITS, BASE_UNIT, ROWS, GROUPS, GROUP, RANK, DOT, NVIDIA,
        )  # fmt: skip
        if part is not None:
            total += part
    if lora_a is not None:
        store_grad_a(grad_a, total * scaling, strip, tile, in_features, rank, COLUMNS, RANK)
