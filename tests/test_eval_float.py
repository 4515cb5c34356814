# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval's third column: what quantization costs, measured from the float model that was trained from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import artifacts
from dlqat import source
from dlqat.exporters import fold
from dlqat.runtime_tests import accuracy, eval_run, intervals, page
from dlqat.trainer import cli
from models import tiny
from test_eval import QUESTIONS, run
from toy_tokenizer import toy_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base/, the float model; out/, a model_dir with out/ort; questions and a text."""
    folder = tmp_path_factory.mktemp("float")
    tiny("llama-tied").save_pretrained(folder / "base")
    toy_tokenizer().save_pretrained(folder / "base")
    words = [str(folder / "base"), "-o", str(folder / "out"), "--method", "rtn", "--bits", "3", "--precision", "fp32"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    fold.fold(folder / "out")
    artifacts.export_folded(folder / "out", "ort")
    (folder / "arc_easy_test.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    (folder / "text.txt").write_text("The cat sat on the mat, and the dog did not. " * 20)
    return folder


def measured(place: Path, folder: Path, *more: object) -> tuple[dict[str, Any], str]:
    """The result of a run, and what it printed."""
    words = ("--tasks", "arc_easy", "--data", place, "--text", place / "text.txt", "--threads", 1)
    said = run(place / "out" / "ort", *words, "--output", folder, *more)
    return json.loads((folder / "eval-host-ort.json").read_text()), said


def test_the_loss_from_the_float_model(place: Path, tmp_path: Path) -> None:
    found, said = measured(place, tmp_path)
    assert found["float"] == str(place / "base") and set(found["facts"]) == {"host-ort", "reference", "float"}
    text, row = found["text"], found["tasks"]["arc_easy"]["acc"]
    base = source.load(source.resolve(str(place / "base")))
    ids = eval_run.token_ids(base.tokenizer, place / "text.txt", None)
    expected = accuracy.perplexity(accuracy.of_model(base.model.float()), ids, 128)
    assert text["float"]["nll"] == pytest.approx(expected.nll, abs=1e-5)
    gap = text["from_float_nats"]
    assert gap["value"] == pytest.approx(text["artifact"]["nll"] - text["float"]["nll"], abs=1e-6)
    assert gap["low"] < gap["value"] < gap["high"] and abs(gap["value"]) > 1e-4 > abs(text["difference_nats"]["value"])
    assert row["from_float"]["value"] == pytest.approx(row["artifact"]["value"] - row["float"]["value"])
    better, worse, n = row["from_float"]["better"], row["from_float"]["worse"], row["questions"]
    ours = [1.0] * better + [0.0] * worse + [1.0] * (n - better - worse)
    theirs = [0.0] * better + [1.0] * worse + [1.0] * (n - better - worse)
    assert row["from_float"]["low"] == pytest.approx(intervals.paired(ours, theirs).low)
    assert "from float" in said
    drawn = next(part for part in page.accuracy({"accuracy": found}) if isinstance(part, page.Table))
    assert drawn.head == ("", "artifact", "reference", "difference", "float", "from float")


def test_without_the_float_model_there_is_no_column(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("out", "arc_easy_test.jsonl", "text.txt"):
        (shutil.copytree if (place / name).is_dir() else shutil.copy)(
            place / name, (copy.mkdir(exist_ok=True), copy / name)[1]
        )
    record = json.loads((copy / "out" / "dlqat.json").read_text())
    (copy / "out" / "dlqat.json").write_text(json.dumps(record | {"source": "org/gone@" + "0" * 40}))
    found, said = measured(copy, tmp_path / "a")
    assert "without the float model: org/gone@" in said and "name it with --base" in said
    assert found["float"] is None and "from_float" not in found["tasks"]["arc_easy"]["acc"]
    assert "from float" not in said
    found, said = measured(copy, tmp_path / "b", "--base", place / "base")
    assert found["float"] == str(place / "base") and "from_float" in found["tasks"]["arc_easy"]["acc"]
    assert f"--base {place / 'base'}" in found["command"]
    found, said = measured(place, tmp_path / "c", "--no-float")
    assert found["float"] is None and "without the float" not in said and "--no-float" in found["command"]
    assert found["command"].count("--no-float") == 1


def test_another_float_model_is_refused(place: Path, tmp_path: Path) -> None:
    tiny("llama-tied", seed=1).save_pretrained(tmp_path / "other")
    toy_tokenizer().save_pretrained(tmp_path / "other")
    words = (place / "out" / "ort", "--text", place / "text.txt", "--output", tmp_path, "--base", tmp_path / "other")
    assert "other is not the model that" in run(*words, code=2)
    assert "leave --no-reference out" in run(*words, "--no-reference", code=2)
