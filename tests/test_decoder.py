# SPDX-License-Identifier: Apache-2.0
"""The description of the forward, evaluated in plain PyTorch, against transformers on the same folded/ folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import models
import unions
from dlqat import architecture, folded
from dlqat.exporters import decoder, storage
from dlqat.folded import Quantized, disk
from dlqat.folded.disk import FoldedModel, Lazy
from dlqat.refusal import Refusal
from torch_builder import TorchBuilder

IDS = [5, 9, 77, 3, 150, 20, 21, 22, 8, 11, 12, 140]
# Two float32 evaluations of logits of about 3, which sum in different orders: 2e-6 was measured, an error is 1e-2.
TOLERANCE = 2e-5


def described(model: FoldedModel, *steps: list[int]) -> torch.Tensor:
    """Logits [tokens, vocabulary] of the description, the tokens fed in `steps`."""
    facts, cache, rows = architecture.read(model.config), {}, []
    for ids in steps:
        b = TorchBuilder(facts, ids, cache)
        decoder.forward(b, model)
        rows.append(b.logits[0])
    return torch.cat(rows)


def reference(folder: Path) -> torch.Tensor:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        return network(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("family", models.FAMILIES)
def test_forward_is_transformers_forward(tmp_path: Path, family: str) -> None:
    """Prefill, and prefill then token by token past the sliding window of 8."""
    models.write_folded(tmp_path / "folded", family)
    model, expected = disk.read(tmp_path / "folded"), reference(tmp_path / "folded")
    torch.testing.assert_close(described(model, IDS), expected, atol=TOLERANCE, rtol=0)
    stepwise = described(model, IDS[:4], *([i] for i in IDS[4:]))
    torch.testing.assert_close(stepwise, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama-tied", "llama-biased"])
def test_union_is_its_dense_weight(tmp_path: Path, family: str) -> None:
    """Low-rank, clustered, summed and nested layers, with and without biases."""
    unions.write_folded(tmp_path / "folded", family)
    model = disk.read(tmp_path / "folded")
    torch.testing.assert_close(described(model, IDS), reference(tmp_path / "folded"), atol=TOLERANCE, rtol=0)


def test_leaves_are_named_by_their_paths(tmp_path: Path) -> None:
    """What a builder is told are the paths of folded.leaves and folded.labels, each once."""
    unions.write_folded(tmp_path / "folded", "llama-tied")
    model = disk.read(tmp_path / "folded")
    b = TorchBuilder(architecture.read(model.config), IDS, {})
    decoder.forward(b, model)
    expected = [path for name in model.layers for path, _ in folded.leaves(model.layers[name], name)]
    expected += [path for name in model.layers for path, _ in folded.labels(model.layers[name], name)]
    expected[expected.index(decoder.EMBEDDING)] = decoder.HEAD
    assert sorted(b.names) == sorted(expected)


def test_one_changed_code_is_seen(tmp_path: Path) -> None:
    """Negative control: the comparison above notices a single code."""
    models.write_folded(tmp_path / "folded", "llama-tied")
    model = disk.read(tmp_path / "folded")
    name = "model.layers.1.mlp.down_proj"
    layer = model.layers[name]
    assert isinstance(layer, Quantized)
    layer.codes[3, 5] += 1 if layer.codes[3, 5] < 7 else -1
    broken = replace(model, layers={**model.layers, name: layer})
    assert (described(broken, IDS) - described(model, IDS)).abs().max() > 100 * TOLERANCE


def test_layers_that_no_rule_matches_stay_float(tmp_path: Path) -> None:
    recipe = models.Recipe(tuple(r for r in models.portable().rules if r.match != "lm_head")[:1])
    models.write_folded(tmp_path / "folded", "llama", recipe)
    model = disk.read(tmp_path / "folded")
    assert decoder.EMBEDDING not in model.layers
    torch.testing.assert_close(described(model, IDS), reference(tmp_path / "folded"), atol=TOLERANCE, rtol=0)


def test_one_block_is_held_at_a_time() -> None:
    """Layers are asked for in forward order, once each (a tied head asks for the embedding again)."""
    model = models.fold_model(models.tiny("llama-tied"))
    asked: list[str] = []

    def load(name: str) -> folded.Folded:
        asked.append(name)
        return model.layers[name]

    described(replace(model, layers=Lazy(list(model.layers), load)), IDS)
    assert asked == [*model.layers, decoder.EMBEDDING]


def test_progress_counts_to_the_end() -> None:
    model, seen = models.fold_model(models.tiny("llama-tied")), list[str]()
    facts = architecture.read(model.config)
    decoder.forward(TorchBuilder(facts, IDS, {}), model, seen.append)
    assert len(seen) == decoder.parts(facts)


def test_missing_layer_is_refused_by_name() -> None:
    model = models.fold_model(models.tiny("llama-tied"))
    layers = {n: x for n, x in model.layers.items() if n != "model.layers.1.mlp.up_proj"}
    with pytest.raises(Refusal, match=r"model\.layers\.1\.mlp\.up_proj"):
        described(replace(model, layers=layers), IDS)
    tensors = {n: x for n, x in model.tensors.items() if n != "model.norm.weight"}
    with pytest.raises(Refusal, match=r"model\.norm\.weight"):
        described(replace(model, tensors=tensors), IDS)


def test_what_cannot_be_looked_up_is_unsupported() -> None:
    model = models.fold_model(models.tiny("llama"))
    b = TorchBuilder(architecture.read(model.config), IDS, {})
    table = model.layers[decoder.EMBEDDING]
    assert storage.unsupported(b, decoder.EMBEDDING, table) is None
    assert "looked up" in (storage.unsupported(b, decoder.EMBEDDING, folded.Sum((table, table))) or "")
    assert storage.unsupported(b, decoder.HEAD, torch.zeros(3, 4)) == "no odd vocabulary here"
