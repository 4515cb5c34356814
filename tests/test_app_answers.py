# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval --answers: what an app's evaluate screen wrote, scored; whatever it is not about is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import artifacts
import models
from dlqat import app_file, source
from dlqat import artifact as artifact_module
from dlqat.refusal import Refusal
from dlqat.runtime_tests import eval_cli
from dlqat.runtime_tests.eval import answers, prompts
from toy_tokenizer import byte_tokenizer

QUESTIONS = ("A?", "B?", "C?", "D?")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = models.fold_model(models.tiny(vocab_size=320))
    return artifacts.export_model(tmp_path_factory.mktemp("answers"), "web", model, byte_tokenizer())


def content(artifact: Path, tasks: Path, texts: list[str]) -> dict[str, Any]:
    app = app_file.read(artifact)
    return {
        "format": 1, "platform": "ios", "device": "iPhone", "longest": 8, "seconds": 2.0,
        "model": {"name": app.name, "program": app.program, "sha256": app.files[app.program].sha256},
        "tasks": hashlib.sha256(tasks.read_bytes()).hexdigest(),
        "answers": [{"text": text, "stop": "end token"} for text in texts],
    }  # fmt: skip


def task_file(folder: Path, wanted: list[str]) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(QUESTIONS, wanted, strict=True)
    ]
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_reference_answers_the_same_prompts(artifact: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Two answers are the reference's own, one of these the data's; the figures count exactly these."""
    folded = artifact.parent / "folded"
    own = answers._reference(
        folded, prompts.read(task_file(tmp_path, ["x"] * 4), source.tokenizer(folded), None, chat=None), 8
    )
    tasks = task_file(tmp_path, [own[0], "b", "c", "d"])
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(content(artifact, tasks, [own[0], own[1], "c", "no"])))
    command = ["dlqat-eval", str(artifact), "--prompts", str(tasks), "--answers", str(path), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_:
        eval_cli.app()
    assert not exit_.value.code
    result = json.loads((tmp_path / "eval-app-ios.json").read_text())
    figures = result["tasks"]["tasks"]["exact"]
    assert [figures[name]["value"] for name in ("artifact", "reference", "difference")] == [0.5, 0.25, 0.25]
    assert result["same_text"] == 2
    assert "50.0" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "answers-app-ios.jsonl").read_text().splitlines()]
    assert [row["right"]["app-ios"] for row in rows] == [True, False, True, False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["model"].update(sha256="0" * 64), "is about another"),
        (lambda c: c.update(tasks="0" * 64), "answers another file"),
        (lambda c: c["answers"].pop(), "has 3 answers, and"),
        (lambda c: c.update(format=2), "has format 2"),
        (lambda c: c.update(platform="../x"), "platform"),
        (lambda c: c.update(colour=1), "colour"),
    ],
)
def test_other_answers_are_refused(artifact: Path, tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    tasks, path = task_file(tmp_path, ["a", "b", "c", "d"]), tmp_path / "answers.json"
    stated = content(artifact, tasks, ["a", "b", "c", "d"])
    path.write_text(json.dumps(stated))
    scored = answers.score(artifact_module.find(artifact), None, tasks, path)
    assert scored["tasks"]["tasks"]["exact"]["artifact"]["value"] == 1.0
    change(stated)
    path.write_text(json.dumps(stated))
    with pytest.raises(Refusal, match=said):
        answers.score(artifact_module.find(artifact), None, tasks, path)
