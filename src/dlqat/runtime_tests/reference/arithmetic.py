# SPDX-License-Identifier: Apache-2.0
"""What a runtime computes when it multiplies, stated so that it can be checked: emulations, not models.

float      y = x @ W^T with float32 products
int8 b     the input of every linear is rounded to int8 in blocks of b inputs, symmetric, by MLAS
           (onnxruntime's MatMulNBits at accuracy_level 4 on x86, QuantizeARow_CompInt8):

               scale = max|x| / 127        q = round_to_even(x * (127 / max|x|))        x' = scale * q

           in float32, and the product with x' is exact integer arithmetic per block. b is the block of
           the weight's scales (32 where a whole row has one). Measured: equal to the kernels of 2, 4 and 8
           bits to 4e-7, where rounding or not rounding the input makes a difference of 1e-2.

int8 per token   the input of every linear is rounded to int8 row by row, asymmetric, by XNNPACK (ExecuTorch's
           dynamically quantized linears; xnn_f32_qdint8_asymmetric_quantization_params):

               scale = 255 / (max - min), both with 0 included        zero = the end with the smaller error, rounded
               q = clip(round_to_even(x * scale) + zero, -128, 127)   x' = (q - zero) / scale

           KleidiAI, which multiplies 4-bit weights on ARM64 for XNNPACK and, at accuracy_level 4, for onnxruntime,
           rounds by the same formula (kai_lhs_quant_pack_qai8dxp_f32), halves away from zero.

int8 per token, symmetric   MLAS's formula above with the whole row as one block. The web form of ONNX writes its rounding
           out in operators: this for rows with one scale, blocks for groups. So every runtime of ONNX does it alike.

int8 in blocks of 32, fp16 scales   llama.cpp's quantize_row_q8_0: MLAS's codes, and the scale that multiplies them rounded
           to fp16. With zero-points (Q4_1) it keeps the block's sum as fp16, too, which does not round the input: those
           layers are "not verified" at L1. Its CPU looks GELU up in a table of fp16 numbers (ggml_vec_geglu_f32).

On ARM64 ties fall elsewhere: KleidiAI rounds halves away from zero, and so does MLAS, which rounds in blocks there with
KleidiAI off and for 8-bit weights, by x * (1 / scale). A tie is rare (2 to 4 of the 1.7 million inputs that SmolLM2's
linears got) and moves its row by up to 3e-3; so `roundings` has both, and rung L1 holds each linear to one of them.
Measured on an emulated cortex-a76: equal to 2e-7, where the other formula is 1e-2 away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dlqat import folded
from dlqat.folded import Clustered, Folded, LowRank, Quantized, Sum


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the input of a linear is rounded: not at all, to int8 in blocks, or to int8 per token."""

    block: int | None = None
    per_token: bool = False
    symmetric: bool = False
    """Per token: 0 is in the middle of the grid."""
    half: bool = False
    """In blocks: their scales are rounded to fp16, after the codes are."""

    def __str__(self) -> str:
        if self.per_token:
            return f"int8 per token{', symmetric' if self.symmetric else ''}"
        return (
            "float" if self.block is None else f"int8 in blocks of {self.block}{', fp16 scales' if self.half else ''}"
        )

    def round(self, x: Tensor) -> Tensor:
        """x [..., inputs] as the multiplication sees it (float32, or float64 as it came)."""
        if self.per_token:
            return round_blocks(x, x.shape[-1]) if self.symmetric else round_tokens(x)
        return x if self.block is None else round_blocks(x, self.block, half=self.half)

    def roundings(self, x: Tensor) -> Iterator[Tensor]:
        """`round`, and the same with the ties of the kernels on ARM64."""
        yield self.round(x)
        if self.per_token and not self.symmetric:
            yield round_tokens(x, neon=True)
        elif self.block is not None:
            yield round_blocks(x, self.block, neon=True, half=self.half)


FLOAT = Arithmetic()
PER_TOKEN = Arithmetic(per_token=True)
PER_TOKEN_SYMMETRIC = Arithmetic(per_token=True, symmetric=True)
LLAMACPP = Arithmetic(32, half=True)


def round_tokens(x: Tensor, *, neon: bool = False) -> Tensor:
    """x [..., inputs] rounded to an asymmetric int8 grid of each row's own; `neon`: as KleidiAI does."""
    f = x.to(torch.float32)
    low, high = f.amin(-1, keepdim=True).clamp(max=0), f.amax(-1, keepdim=True).clamp(min=0)
    span = high - low
    # a tensor by a tensor: torch computes 255.0 / span as 255 times the reciprocal, which is not the nearest float
    scale = torch.where(span == 0, torch.ones_like(span), torch.full_like(span, 255.0) / span)
    from_low, from_high = -128.0 - low * scale, 127.0 - high * scale
    low_errs_more = (low * scale - 128.0) + (high * scale + 127.0) > 0
    zero = torch.where(low_errs_more, from_low, from_high).clamp(-128, 127).round()
    q = (_nearest(f * scale, neon) + zero).clamp(-128, 127)
    return ((q - zero) / scale).to(x.dtype)


def round_blocks(x: Tensor, block: int, *, neon: bool = False, half: bool = False) -> Tensor:
    """x [..., inputs] rounded to int8 in blocks along the last axis (a short last block counts by itself).

    `neon`: as MLAS does on ARM64, with the reciprocal of the scale in place of 127 / max|x|. `half`: as llama.cpp does.
    """
    inputs = x.shape[-1]
    padded = torch.nn.functional.pad(x.to(torch.float32), (0, -inputs % block))
    blocks = padded.unflatten(-1, (-1, block))
    top = blocks.abs().amax(-1, keepdim=True)
    scale = top / torch.full_like(top, 127.0)  # and below, a tensor by a tensor: as in round_tokens
    inverse = torch.ones_like(top) / scale if neon else torch.full_like(top, 127.0) / top
    steps = blocks * torch.where(top > 0, inverse, torch.zeros_like(top))
    scale = scale.half().float() if half else scale
    return (_nearest(steps, neon) * scale).flatten(-2)[..., :inputs].to(x.dtype)


def gelu_table(gelu: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """GELU of x as llama.cpp looks it up: x and the result rounded to fp16, and from -10 and 10 on 0 and x itself."""
    looked_up = gelu(x.half().float()).half().to(x.dtype)
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, looked_up))


def _nearest(x: Tensor, away: bool) -> Tensor:
    """The nearest integers; a half goes away from zero, or to the even one."""
    return x.trunc() + (2 * x.frac()).trunc() if away else x.round()


def apply(layer: Folded, name: str, x: Tensor, arithmetic: Callable[[str], Arithmetic]) -> Tensor:
    """y [..., out] of a folded layer, each leaf rounding its own input as `arithmetic(path)` says. In x's dtype."""
    match layer:
        case Quantized():
            return arithmetic(name).round(x) @ folded.dense(layer).to(x.dtype).T
        case LowRank(left, right):
            return apply(left, f"{name}.left", apply(right, f"{name}.right", x, arithmetic), arithmetic)
        case Clustered(centroids, labels):
            return apply(centroids, f"{name}.centroids", x, arithmetic)[..., labels.long()]
        case Sum(parts):
            return torch.stack([apply(p, f"{name}.{i}", x, arithmetic) for i, p in enumerate(parts)]).sum(0)


def leaf_inputs(layer: Folded, name: str, x: Tensor) -> Mapping[str, Tensor]:
    """Leaf path -> what that leaf multiplies when the layer gets x [rows, in], in float arithmetic."""
    found: dict[str, Tensor] = {}

    def note(path: str, value: Tensor) -> None:
        found[path] = value

    def walk(part: Folded, path: str, value: Tensor) -> None:
        match part:
            case Quantized():
                note(path, value)
            case LowRank(left, right):
                walk(right, f"{path}.right", value)
                walk(left, f"{path}.left", apply(right, f"{path}.right", value, lambda _: FLOAT))
            case Clustered(centroids, _):
                walk(centroids, f"{path}.centroids", value)
            case Sum(parts):
                for i, summand in enumerate(parts):
                    walk(summand, f"{path}.{i}", value)

    walk(layer, name, x)
    return found
