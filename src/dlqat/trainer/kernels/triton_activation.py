# SPDX-License-Identifier: Apache-2.0
# pyright: basic, reportGeneralTypeIssues=false
"""Int8 per-token activations (dlqat.trainer.layers.activation.fake_quant) in one read and one write of x.

One program a token: minimum, maximum and rounding see the row in registers. The straight-through backward is
the identity, so fused with it there is nothing left to launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlqat.trainer.kernels.triton_tile import narrow, round_even


@triton.jit
def fake_quant_kernel(x, made, features, BLOCK: tl.constexpr):
    """made, x [tokens, features]; grid (tokens,); BLOCK >= features."""
    column = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * features + column
    f = tl.load(x + at, column < features, other=0.0).to(tl.float32)
    low, high = tl.minimum(tl.min(f, axis=0), 0.0), tl.maximum(tl.max(f, axis=0), 0.0)
    span = high - low
    inverse = tl.where(span == 0.0, 1.0, tl.div_rn(255.0, tl.where(span == 0.0, 1.0, span)))
    low, high = low * inverse, high * inverse
    zero = tl.where((low - 128.0) + (high + 127.0) > 0.0, -128.0 - low, 127.0 - high)
    zero = round_even(tl.minimum(tl.maximum(zero, -128.0), 127.0))
    q = tl.minimum(tl.maximum(round_even(f * inverse), -128.0 - zero), 127.0 - zero)
    back = tl.div_rn(q, tl.broadcast_to(inverse, q.shape))
    tl.store(made + at, narrow(back, made.dtype.element_ty, False), column < features)
