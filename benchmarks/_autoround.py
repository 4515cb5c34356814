# SPDX-License-Identifier: Apache-2.0
"""AutoRound by its own package: a baseline on the same tokens, bits and groups, and a start to train on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlqat.grid import Grid
from dlqat.trainer.layers.qat import QATLinear
from dlqat.trainer.rounding.offset import offset

ITERATIONS = 40
"""As many as `--init blocks` makes. The package's default is 200."""


def autoround(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bits: int, tokens: Tensor) -> None:
    """Round the linears of `model`'s blocks in place (dequantized weights); tokens [sequences, length]."""
    from auto_round import AutoRound

    model.name_or_path = model.config._name_or_path = str(Path(__file__).parent)  # noqa: SLF001 - else it asks a hub
    rounding = AutoRound(
        model,
        tokenizer,
        bits=bits,
        group_size=32,
        sym=True,
        iters=ITERATIONS,
        seqlen=tokens.shape[1],
        nsamples=len(tokens),
        batch_size=8,
        dataset=list(tokens.split(8)),
        device_map="cpu",
        enable_torch_compile=False,
    )
    made, _ = rounding.quantize()
    assert made is model
    model.to(torch.float32)


@torch.no_grad()
def start(layers: Mapping[str, nn.Module], rounded: Mapping[str, Tensor]) -> None:
    """Bring layers to AutoRound's integers: their scales, and an offset from the float weight to each of them.

    rounded: NAME.weight -> the weights that `autoround` left. A symmetric grid of 4 bits has no +8, which
    AutoRound gives groups with a negative scale: those weights start at 7.
    """
    for name, layer in layers.items():
        if not isinstance(layer, QATLinear) or f"{name}.weight" not in rounded:
            continue
        grid, weight = layer.spec.grid, rounded[f"{name}.weight"].float()
        scales, turned = lattice(weight, grid)
        layer.scales.copy_(grid.round_scales(scales))
        if layer.zero_points is not None:
            layer.zero_points.copy_(-turned.to(layer.zero_points.dtype))
        layer.offset = offset(weight, layer.weight, layer.scales, layer.zero_points, grid)


def lattice(rounded: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scales float32 [out, groups] on which every weight of `rounded` float32 [out, in] is an integer, and bool [out, groups]:
    where one of them is 2^(bits-1), a level more than the grid has above zero."""
    out, groups = rounded.shape[0], grid.groups(rounded.shape[1])
    values = rounded.view(out, groups, -1)
    largest = values.abs().amax(-1).clamp(min=1e-8)
    scales = largest / -grid.qmin
    for top in range(1 - grid.qmin, 0, -1):  # the coarsest lattice that fits is the last
        steps = values * (top / largest)[..., None]
        # AutoRound leaves bfloat16: 2^-9 of at most 8 steps.
        fits = ((steps - steps.round()).abs() < 0.04).all(-1)
        scales = torch.where(fits, largest / top, scales)
    codes = (values / scales[..., None]).round()
    scales = ((values * codes).sum(-1) / (codes * codes).sum(-1).clamp(min=1)).where(largest > 1e-8, scales)
    return scales, (codes > grid.qmax).any(-1)
