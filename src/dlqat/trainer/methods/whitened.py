# SPDX-License-Identifier: Apache-2.0
"""Low-rank factors that lose least of a layer's *output*: the whitened SVD of SVD-LLM and CASP.

With C = sum X^T X = L L^T (Cholesky) the squared error of the outputs of W' is |(W - W') L|^2, so

    W L = U S V^T,   left = U_r sqrt(S_r),   right = sqrt(S_r) V_r^T L^-1

is the best rank-r weight, and its error is exactly the energy of the singular values that were cut off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlqat.trainer.rounding.to_grid import split, svd


def whitened(weight: Tensor, moments: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left [out, r] and right [r, in], float64, of weight [out, in] under C = moments [in, in]."""
    root = cholesky(moments.double())
    left, right = split(*svd(weight.double() @ root), rank)
    return left, torch.linalg.solve_triangular(root, right, upper=False, left=False)


def cholesky(moments: Tensor) -> Tensor:
    """L with L L^T = C; where C is singular (fewer tokens than inputs, dead inputs), of C + 1e-6 mean(diag) I."""
    factor, failed = torch.linalg.cholesky_ex(moments)
    if not int(failed):
        return factor
    damp = 1e-6 * moments.diagonal().mean().clamp(min=1e-30) - torch.linalg.eigvalsh(moments)[0].clamp(max=0)
    return torch.linalg.cholesky(moments + damp * torch.eye(len(moments), dtype=moments.dtype, device=moments.device))
