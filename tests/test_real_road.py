# SPDX-License-Identifier: Apache-2.0
"""Laws 1 to 3 on the real model: the folded folder, loaded by transformers, is the model in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dlqat import folded, source
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from dlqat.recipe import portable
from dlqat.trainer.layers.prepare import prepare, qat_layers
from dlqat.trainer.layers.qat import QATLinear


@pytest.mark.real
@pytest.mark.parametrize("bits", [3])
def test_folded_logits_equal_those_of_the_model_in_training(smollm2: Path, tmp_path: Path, bits: int) -> None:
    loaded = source.load(source.resolve(str(smollm2)))
    model = loaded.model
    specs = prepare(model, portable(bits, 32, activation_bits=0))
    generator = torch.Generator().manual_seed(0)
    layers = qat_layers(model)
    with torch.no_grad():
        for layer in layers.values():
            if isinstance(layer, QATLinear) and layer.lora_b is not None and layer.magnitude is not None:
                layer.lora_b.normal_(std=0.01, generator=generator)
                layer.magnitude.normal_(1.0, 0.05, generator=generator)
    ids = loaded.tokenizer("The capital of France is Paris. The capital of Italy is", return_tensors="pt").input_ids
    with torch.no_grad():
        trained = model(ids).logits

    weights = source.weights(loaded.source)
    plain = {n: weights[n] for n in weights if n.removesuffix(".weight") not in specs}
    made = FoldedModel(loaded.source.config, {n: x.fold() for n, x in layers.items()}, plain, specs)
    disk.write(made, tmp_path / "folded", files=smollm2)
    back = disk.read(tmp_path / "folded")
    for name in back.layers:
        assert torch.equal(folded.dense(back.layers[name]), folded.dense(made.layers[name])), name
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    with torch.no_grad():
        assert torch.equal(reference(ids).logits, trained)
