# SPDX-License-Identifier: Apache-2.0
"""What an embedding of few bits costs that is the head, too: SmolLM2-135M, everything else in float.

    python benchmarks/head.py

Three ways to round it: least squared error, scales weighed by the mean square of what the head reads, and GPTQ as the starts
do it (trainer/starts/offsets.py). KL to the float model in nats a token, on the second half of each of 6 x 512 tokens of
WikiText-2 test; `lookup` is what of it stays when the head multiplies with the float weights. Calibrated on 8,192 tokens of
valid. Symmetric groups of 32. Minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _common import Results, smollm2, text
from torch import Tensor
from transformers import PreTrainedModel

from dlqat import folded, source
from dlqat.adapter import Adapter, fold
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.grid import Grid
from dlqat.recipe import EMBEDDINGS, Recipe, Rule
from dlqat.trainer.calibrate import head_moments
from dlqat.trainer.layers.prepare import prepare
from dlqat.trainer.rounding.search import COARSE, refit, search
from dlqat.trainer.starts import offsets

WIDTHS = (5, 4)


def sequences(tokenizer: Callable[[str], dict[str, list[int]]], name: str, count: int, length: int) -> Tensor:
    """The first tokens of a text, [count, length]."""
    content = text(f"wikitext-2/{name}.txt").read_text(encoding="utf-8")
    return torch.tensor(tokenizer(content[: 16 * count * length])["input_ids"][: count * length]).view(count, length)


def log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(ids[None]).logits[0].log_softmax(-1)


def ways(weight: Tensor, tokens: Tensor, grid: Grid) -> dict[str, Callable[[], Tensor]]:
    """Each way's rounded weight, float32 [vocabulary, hidden]."""

    def least() -> Tensor:
        return folded.dense(fold(weight, Adapter(grid, *search(weight, grid, None, COARSE))))

    def weighed() -> Tensor:
        importance = head_moments(_float(), tokens).diagonal() / tokens.numel()
        found = search(weight, grid, importance, COARSE)
        return folded.dense(fold(weight, Adapter(grid, refit(weight, found, grid, importance), found[1])))

    def built_in() -> Tensor:
        model, outer = _float(), {"bits": grid.bits, "group_size": grid.group_size, "rank": 0, "magnitude": False}
        prepare(model, Recipe((Rule(EMBEDDINGS, outer),)))
        offsets.head(model, tokens, lambda name: None)
        return folded.dense(model.get_submodule(EMBEDDING).fold())

    return {"least squared error": least, "weighed scales": weighed, "GPTQ": built_in}


def _float() -> PreTrainedModel:
    return source.load(source.resolve(smollm2())).model.float().eval()


@torch.no_grad()
def main() -> None:
    results = Results("head")
    tokenizer = source.load(source.resolve(smollm2())).tokenizer
    model, tokens = _float(), sequences(tokenizer, "valid", 32, 256)
    test = sequences(tokenizer, "test", 6, 512)
    weight = model.get_submodule(EMBEDDING).weight.detach().clone()
    wanted = [log_probabilities(model, ids) for ids in test]

    def kl() -> float:
        found = (log_probabilities(model, ids) for ids in test)
        each = [(p.exp() * (p - q)).sum(-1)[256:].mean() for p, q in zip(wanted, found, strict=True)]
        return float(torch.stack(each).mean())

    embedding, head = model.get_submodule(EMBEDDING), model.get_submodule(HEAD)
    for bits in WIDTHS:
        for name, way in ways(weight, tokens, Grid(bits, 32)).items():
            key = f"{bits} bits, {name}"
            if key in results.rows:
                continue
            embedding.weight.copy_(way())  # the head's, too
            row = {"kl": kl()}
            head.weight = torch.nn.Parameter(weight, requires_grad=False)
            row["lookup"] = kl()
            head.weight = embedding.weight
            results.add(key, row)
            print(key, row, flush=True)


if __name__ == "__main__":
    main()
