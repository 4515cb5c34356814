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
from dlqat.folded import Quantized, disk
from dlqat.grid import Grid
from dlqat.recipe import Recipe, Rule
from onnx_runs import FORMS, Text, session

IDS = np.array([[5, 9, 77, 3, 150, 20, 21, 22, 8, 11, 12, 140]])
# float32 kernels that sum in other orders than PyTorch's, logits of about 3: 3e-6 was measured, an error is 1e-2.
TOLERANCE = 2e-5


def expected(folder: Path, ids: np.ndarray = IDS) -> np.ndarray:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        return network(torch.from_numpy(ids)).logits.numpy()


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
    path = onnx_runs.write(disk.read(tmp_path / "folded"), tmp_path / form, form)
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
    path = onnx_runs.write(disk.read(tmp_path / "folded"), tmp_path / form, form)
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
    path = onnx_runs.write(disk.read(tmp_path / "folded"), tmp_path / form, form)
    logits = expected(tmp_path / "folded")
    for optimize in (False, True):
        assert difference(path, logits, optimize=optimize) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_unions(tmp_path: Path, form: str) -> None:
    """Low-rank, clustered, summed and nested layers, with biases."""
    unions.write_folded(tmp_path / "folded", "llama-biased")
    path = onnx_runs.write(disk.read(tmp_path / "folded"), tmp_path / form, form)
    assert difference(path, expected(tmp_path / "folded"), optimize=True) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_layers_left_in_float(tmp_path: Path, form: str) -> None:
    models.write_folded(tmp_path / "folded", "qwen2", Recipe((Rule(r".*\.mlp\..*", {}),)))
    path = onnx_runs.write(disk.read(tmp_path / "folded"), tmp_path / form, form)
    assert difference(path, expected(tmp_path / "folded"), optimize=True) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_one_changed_code_is_seen(tmp_path: Path, form: str) -> None:
    """Negative control of everything above."""
    models.write_folded(tmp_path / "folded", "llama-tied")
    model = disk.read(tmp_path / "folded")
    name = "model.layers.1.mlp.down_proj"
    layer = model.layers[name]
    assert isinstance(layer, Quantized)
    layer.codes[3, 5] += 1 if layer.codes[3, 5] < 7 else -1
    path = onnx_runs.write(replace(model, layers={**model.layers, name: layer}), tmp_path / form, form)
    assert difference(path, expected(tmp_path / "folded"), optimize=True) > 100 * TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rows_of_any_length(tmp_path: Path, family: str, form: str, side: str) -> None:
    """A batch padded on either side, prompt and single tokens: as each row alone in transformers, wherever a token is real."""
    models.write_folded(tmp_path / "folded", family)
    path = onnx_runs.write(disk.read(tmp_path / "folded"), tmp_path / form, form)
    rows = [np.roll(IDS, 3)[:, :n] for n in (9, 4, 12, 1)]
    after = np.concatenate([IDS[:, :4]] * 2)
    alone = [
        expected(tmp_path / "folded", np.concatenate([row, next_[None]], 1))
        for row, next_ in zip(rows, [*after, *after], strict=True)
    ]
    ids, mask = padded(rows, side)
    text, generator = (Text(session(path.with_name(n)), batch=4) for n in ("model.onnx", "model_generate.onnx"))
    got, last = text.step(ids, mask), generator.step(ids, mask)
    for i, row in enumerate(rows):
        n = row.shape[1]
        assert np.abs(got[i][mask[i] == 1] - alone[i][0, :n]).max() < TOLERANCE
        assert np.abs(last[i] - alone[i][0, n - 1]).max() < TOLERANCE
    for step in range(4):
        column = np.concatenate([after, after])[:, [step]]
        for logits in (text.step(column), generator.step(column)):
            for i, row in enumerate(rows):
                assert np.abs(logits[i, 0] - alone[i][0, row.shape[1] + step]).max() < TOLERANCE


def padded(rows: list[np.ndarray], side: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of rows [1, n] in one batch; the padding is a token of the vocabulary, which must not be seen."""
    longest = max(row.shape[1] for row in rows)
    gap = {"left": lambda n: (longest - n, 0), "right": lambda n: (0, longest - n)}[side]
    ids = [np.pad(row[0], gap(row.shape[1]), constant_values=99) for row in rows]
    mask = [np.pad(np.ones_like(row[0]), gap(row.shape[1])) for row in rows]
    return np.stack(ids), np.stack(mask)


@pytest.mark.parametrize("form", FORMS)
def test_the_last_logits_of_padded_rows(tmp_path: Path, form: str) -> None:
    """num_logits_to_keep counts tokens, not padding."""
    run = session(onnx_runs.write(models.fold_model(models.tiny()), tmp_path, form))
    rows = [IDS[:, :9], IDS[:, :6]]
    ids, mask = padded(rows, "right")
    got = Text(run, batch=2).step(ids, mask, keep=3)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(got[i], Text(run).step(row)[0, -3:], atol=TOLERANCE)


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
