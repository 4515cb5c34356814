# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors' packing of 2, 4 and 8 bits, at the speed of memory: whole codes to a byte, the first one lowest.

Its own functions go through int32 of every code, some times over, and took half of the time of a fold and of a check. Other
widths, whose codes lie across words, are left to them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WIDTHS = (2, 4, 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """int32 [out, words] of codes int8 [out, in]; the last word is filled with zeros."""
    per, half = 8 // bits, np.uint8(1 << (bits - 1))
    words = -(-codes.shape[1] * bits // 32)
    raised = np.zeros((codes.shape[0], words * 32 // bits), np.uint8)
    raised[:, : codes.shape[1]] = codes.numpy().view(np.uint8) + half
    packed = raised[:, 0::per].copy()
    for i in range(1, per):
        packed |= raised[:, i::per] << np.uint8(bits * i)
    return torch.from_numpy(packed.view(np.int32))


def unpack(packed: Tensor, bits: int, inputs: int) -> Tensor:
    """Codes int8 [out, inputs] of int32 [out, words]."""
    per, half, mask = 8 // bits, np.uint8(1 << (bits - 1)), np.uint8((1 << bits) - 1)
    content = packed.contiguous().numpy().view(np.uint8)
    codes = np.empty((len(content), content.shape[1] * per), np.uint8)
    for i in range(per):
        part = codes[:, i::per]
        np.right_shift(content, np.uint8(bits * i), out=part)
        if per > 1:
            part &= mask
        part -= half
    return torch.from_numpy(codes.view(np.int8)[:, :inputs])
