# SPDX-License-Identifier: Apache-2.0
"""What the ONNX files compute, in onnxruntime, against transformers on the same folded/ folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import models
import onnx_runs
import unions
from dlqat import checkpoint
from dlqat.folded import Quantized
from dlqat.grid import Grid
from dlqat.recipe import Recipe, Rule
from onnx_runs import FORMS, Text, session

IDS = np.array([[5, 9, 77, 3, 150, 20, 21, 22, 8, 11, 12, 140]])
# float32 kernels that sum in other orders than PyTorch's, logits of about 3: 3e-6 was measured, an error is 1e-2.
TOLERANCE = 2e-5


def expected(folder: Path, ids: np.ndarray = IDS, mask: np.ndarray | None = None) -> np.ndarray:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        given = None if mask is None else torch.from_numpy(mask)
        return network(torch.from_numpy(ids), attention_mask=given).logits.numpy()


def difference(path: Path, logits: np.ndarray, *, optimize: bool) -> float:
    """Worst |difference| over a prompt at once, and over a prompt of 5 followed by single tokens."""
    run = session(path, optimize=optimize)
    worst = np.abs(Text(run).step(IDS) - logits).max()
    text = Text(run)
    rows = [text.step(IDS[:, :5])] + [text.step(IDS[:, [i]]) for i in range(5, IDS.shape[1])]
    return max(worst, np.abs(np.concatenate(rows, 1) - logits).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_families(tmp_path: Path, family: str, form: str) -> None:
    """Prefill and decode, graph optimizations off and on; mistral decodes past its window of 8."""
    models.write_folded(tmp_path / "folded", family)
    path = onnx_runs.write(checkpoint.read(tmp_path / "folded"), tmp_path / form, form)
    logits = expected(tmp_path / "folded")
    for optimize in (False, True):
        assert difference(path, logits, optimize=optimize) < TOLERANCE


GRIDS = [
    Grid(2, 16),
    Grid(2, 32, symmetric=False),
    Grid(3, 32),
    Grid(3, 64, symmetric=False),
    Grid(4, 16, symmetric=False),
    Grid(4, 64),
    Grid(4, None),
    Grid(4, None, symmetric=False),
    Grid(8, 32),
    Grid(8, 32, symmetric=False),
    Grid(8, None),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids(tmp_path: Path, grid: Grid, form: str) -> None:
    """Every kind of grid in blocks, embedding and head."""
    fields = {"bits": grid.bits, "group_size": grid.group_size or 0, "symmetric": grid.symmetric}
    models.write_folded(tmp_path / "folded", "llama", Recipe((Rule(".*", fields),)))
    path = onnx_runs.write(checkpoint.read(tmp_path / "folded"), tmp_path / form, form)
    logits = expected(tmp_path / "folded")
    for optimize in (False, True):
        assert difference(path, logits, optimize=optimize) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_that_no_block_divides(tmp_path: Path, form: str, symmetric: bool) -> None:
    """One scale per output and 72 or 200 inputs: the ort form fills up the last block, and that multiplies nothing."""
    recipe = Recipe((Rule(".*", {"bits": 4, "group_size": 0, "symmetric": symmetric}),))
    sizes = {"hidden_size": 200, "head_dim": 16, "intermediate_size": 72}
    models.write_folded(tmp_path / "folded", "llama-tied", recipe, **sizes)
    path = onnx_runs.write(checkpoint.read(tmp_path / "folded"), tmp_path / form, form)
    logits = expected(tmp_path / "folded")
    for optimize in (False, True):
        assert difference(path, logits, optimize=optimize) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_unions(tmp_path: Path, form: str) -> None:
    """Low-rank, clustered, summed and nested layers, with biases."""
    unions.write_folded(tmp_path / "folded", "llama-biased")
    path = onnx_runs.write(checkpoint.read(tmp_path / "folded"), tmp_path / form, form)
    assert difference(path, expected(tmp_path / "folded"), optimize=True) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_layers_left_in_float(tmp_path: Path, form: str) -> None:
    models.write_folded(tmp_path / "folded", "qwen2", Recipe((Rule(r".*\.mlp\..*", {}),)))
    path = onnx_runs.write(checkpoint.read(tmp_path / "folded"), tmp_path / form, form)
    assert difference(path, expected(tmp_path / "folded"), optimize=True) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_one_changed_code_is_seen(tmp_path: Path, form: str) -> None:
    """Negative control of everything above."""
    models.write_folded(tmp_path / "folded", "llama-tied")
    model = checkpoint.read(tmp_path / "folded")
    name = "model.layers.1.mlp.down_proj"
    layer = model.layers[name]
    assert isinstance(layer, Quantized)
    layer.codes[3, 5] += 1 if layer.codes[3, 5] < 7 else -1
    path = onnx_runs.write(replace(model, layers={**model.layers, name: layer}), tmp_path / form, form)
    assert difference(path, expected(tmp_path / "folded"), optimize=True) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_left_padded_batch(tmp_path: Path, family: str) -> None:
    """Rows of unequal length in the standard form: as transformers, wherever a token is real."""
    models.write_folded(tmp_path / "folded", family)
    path = onnx_runs.write(checkpoint.read(tmp_path / "folded"), tmp_path / "qdq", "qdq")
    ids = np.concatenate([IDS, np.roll(IDS, 4)])
    mask = np.ones_like(ids)
    mask[1, :4] = 0
    logits = expected(tmp_path / "folded", ids, mask)
    text = Text(session(path), batch=2)
    got = np.concatenate([text.step(ids[:, :9], mask[:, :9]), *(text.step(ids[:, [i]]) for i in (9, 10, 11))], 1)
    assert np.isfinite(got).all()
    assert np.abs((got - logits)[mask == 1]).max() < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_logits_that_are_asked_for(tmp_path: Path, form: str) -> None:
    """num_logits_to_keep: 0 or not fed is all; the second file gives the last, and declares it."""
    path = onnx_runs.write(models.fold_model(models.tiny()), tmp_path, form)
    run, generator = session(path), session(path.with_name("model_generate.onnx"))
    every = Text(run).step(IDS)
    assert every.shape == (1, IDS.shape[1], 160)
    for keep, rows in ((0, every), (1, every[:, -1:]), (5, every[:, -5:])):
        np.testing.assert_allclose(Text(run).step(IDS, keep=keep), rows, atol=TOLERANCE)
    np.testing.assert_allclose(Text(generator).step(IDS), every[:, -1:], atol=TOLERANCE)
    assert generator.get_outputs()[0].shape == ["batch_size", 1, 160]
    assert not generator.get_overridable_initializers()
