# SPDX-License-Identifier: Apache-2.0
"""AutoRound by its own package, as a baseline: the same tokens, bits and groups."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
