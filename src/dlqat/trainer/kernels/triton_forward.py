# SPDX-License-Identifier: Apache-2.0
# pyright: basic, reportGeneralTypeIssues=false
"""W' = snap(m s) (q - z) from W0, A, B, m, s, z in one pass over W0.

Bytes a weight, bf16: 2 read (W0) + 2 written (W') + 8 / group_size (s, m) + offset 1 where there is one.
A program keeps its tile of A and walks down a strip of rows; B is the only operand read again, 4 r / COLUMNS
bytes a weight, out of a cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlqat.trainer.kernels.triton_tile import indices, latent_levels, low_rank, narrow, round_even, scales_of


@triton.jit
def weight_forward_kernel(
    weight, scales, zero_points, magnitude, lora_a, lora_b, offset, made,
    out_features, in_features, groups, rank, scaling,
    QMIN: tl.constexpr, QMAX: tl.constexpr, SCALE_BITS: tl.constexpr, BASE_UNIT: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, RANK: tl.constexpr, STEPS: tl.constexpr,
    DOT: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """made [out, in]; grid (column tiles, strips of STEPS * ROWS rows)."""
    first_column = tl.program_id(0) * (GROUPS * GROUP)
    for step in range(STEPS):
        first_row = (tl.program_id(1) * STEPS + step) * ROWS
        at, inside, at_scales, inside_scales = indices(
            first_row, first_column, out_features, in_features, groups, ROWS, GROUPS, GROUP
        )
        s, folded, low, high = scales_of(
            scales, zero_points, magnitude, at_scales, inside_scales, QMIN, QMAX, SCALE_BITS
        )
        product = None
        if lora_a is not None:
            a, b = low_rank(
                lora_a, lora_b, first_row, first_column, out_features, in_features, rank, ROWS, GROUPS * GROUP, RANK
            )
            product = tl.dot(b, a, input_precision=DOT).reshape([ROWS, GROUPS, GROUP])
        v = latent_levels(weight, offset, product, at, inside, s, scaling, BASE_UNIT, NVIDIA)
        levels = tl.minimum(tl.maximum(round_even(v), low[:, :, None]), high[:, :, None])
        tl.store(made + at, narrow(levels * folded[:, :, None], made.dtype.element_ty, NVIDIA), inside)
