# SPDX-License-Identifier: Apache-2.0
"""Folders that an earlier dlqat wrote: they load, fold to the same bytes, export and check.

tests/data/before was written at commit 16059e4: a tiny model of one layer (base, without its tokenizer), trained with
`--method swsc --then dlqat --group-size 16 --rank 2` (model_dir: attention in sums of clustered and low-rank parts) and folded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import artifacts
from dlqat import plan, source
from dlqat.exporters import fold
from dlqat.folded import Clustered, LowRank, Quantized, Sum, disk, packing

BEFORE = Path(__file__).parent / "data" / "before"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BEFORE, tmp_path / "before"))


def test_a_model_dir_of_before_folds_to_the_bytes_of_before(before: Path) -> None:
    """Over the folded/ that lies there: the mark of before counts as our own."""
    assert not fold.stale(before / "model_dir")
    fold.fold(before / "model_dir", base=str(before / "base"))
    for old in sorted((BEFORE / "model_dir" / "folded").iterdir()):
        assert (before / "model_dir" / "folded" / old.name).read_bytes() == old.read_bytes(), old.name


def test_the_plan_of_before_is_read_and_written_as_it_was() -> None:
    read = plan.read(BEFORE / "model_dir")
    assert json.dumps(plan.to_json(read)) == json.dumps(json.loads((BEFORE / "model_dir" / plan.FILE).read_text()))


def test_the_layers_of_before_are_read_and_described_as_they_were() -> None:
    folder = BEFORE / "model_dir" / "folded"
    model, record = disk.read(folder), json.loads((folder / "dlqat.json").read_text())
    assert {n: packing.describe(layer) for n, layer in model.layers.items()} == record["layers"]
    layer = model.layers["model.layers.0.self_attn.q_proj"]
    assert isinstance(layer, Sum) and [type(part) for part in layer.parts] == [Clustered, LowRank]
    assert isinstance(model.layers["model.embed_tokens"], Quantized)
    assert source.resolve(str(BEFORE / "base")).decoder.linears()


def test_a_folder_of_before_is_exported_and_checked(before: Path) -> None:
    artifact = artifacts.export_folded(before / "model_dir", "qdq")
    checks = artifacts.checks(artifact, before / "model_dir" / "folded", "L0", "L2")
    assert {c.rung: c.status for c in checks} == {"L0": "passed", "L2": "passed"}, checks
    assert {c.status for c in checks} == {"passed"}, checks
