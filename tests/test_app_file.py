# SPDX-License-Identifier: Apache-2.0
"""dlqat-app.json: what every artifact says of itself to apps, read strictly, and held to folded/ by dlqat-check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import artifacts as exported
import models
from dlqat import app_file, atomic
from dlqat import artifact as artifacts
from dlqat.refusal import Refusal
from dlqat.runtime_tests.check import client_files
from toy_tokenizer import CHATML, byte_tokenizer

FORMS = ("web", "xnnpack", "gguf", "mlx")


@pytest.fixture(scope="module", params=FORMS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = models.fold_model(models.tiny(vocab_size=320))
    return exported.export_model(tmp_path_factory.mktemp("app"), request.param, model, byte_tokenizer())


def faults(artifact: Path) -> list[str]:
    return [*client_files.app(artifact, artifact.parent / "folded", artifacts.find(artifact).manifest)]


def test_it_says_what_the_artifact_is(artifact: Path) -> None:
    found, manifest = app_file.read(artifact), artifacts.find(artifact)
    assert (found.target, found.context) == (manifest.manifest.target, exported.CONTEXT)
    assert (found.eos, found.eos_tokens) == ([2], ["</s>"])
    assert found.template is not None
    assert CHATML in found.template
    assert found.turns is not None
    assert found.turns.prompt(["a", "b", "c"]) == "<s>user\na</s>\n<s>assistant\nb</s>\n<s>user\nc</s>\n<s>assistant\n"
    assert found.bits == {"4": 14, "8": 1}
    assert found.integers == "not verified"
    assert artifact / found.program == manifest.generator
    assert {name: file.sha256 for name, file in found.files.items()}[found.program] == atomic.sha256(manifest.generator)
    assert all((artifact / name).stat().st_size == file.bytes for name, file in found.files.items())
    assert faults(artifact) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("eos", [0], "eos is [0]"),
        ("eos", [2, 3], "eos is [2, 3]"),
        ("eos_tokens", ["<s>"], "eos_tokens is ['<s>']"),
        ("context", 4096, "context is 4096"),
        ("sampling", {"temperature": 0.7}, "sampling is"),
        ("template", CHATML.replace("assistant", "bot"), "its chat template writes another prompt"),
        ("template", None, "has no chat template"),
        ("special", {"eos_token": "<s>"}, "special is"),
        ("turns", {"head": "<s>", "tail": "", "mid": ""}, "turns write another prompt"),
    ],
)
def test_dlqat_check_notices_what_it_says_wrong(
    artifact: Path, key: str, value: Any, said: str, tmp_path: Path
) -> None:
    copy = tmp_path / "m" / artifact.name
    shutil.copytree(artifact, copy)
    (tmp_path / "m" / "folded").symlink_to(artifact.parent / "folded")
    content = json.loads((copy / app_file.NAME).read_text())
    (copy / app_file.NAME).write_text(json.dumps(content | {key: value}))
    assert any(said in line for line in faults(copy)), faults(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format=2), "format 2, this dlqat reads 1"),
        (lambda c: c.update(colour="red"), "colour"),
        (lambda c: c.pop("eos"), "eos"),
        (lambda c: c.update(context=0), "context"),
        (lambda c: c.update(program="../other.onnx"), "leads out of its folder"),
        (lambda c: next(iter(c["files"].values())).update(sha256="0"), "sha256"),
    ],
)
def test_a_description_that_is_not_ours_is_refused(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    file = {"sha256": "0" * 64, "bytes": 1}
    content: dict[str, Any] = {
        "format": 1, "name": "m", "target": "onnx", "form": "web", "program": "m.onnx", "context": 8, "eos": [2],
        "eos_tokens": ["</s>"], "special": {}, "template": None, "turns": None, "sampling": {}, "bits": {"4": 1}, "bits_per_weight": 4.5,
        "parameters": 1, "files": {"m.onnx": file},
    }  # fmt: skip
    path = tmp_path / app_file.NAME
    path.write_text(json.dumps(content))
    assert app_file.read(tmp_path).eos == [2]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(Refusal, match=said) as refused:
        app_file.read(tmp_path)
    assert "export again" in str(refused.value)


def test_verified_is_what_a_report_about_these_files_says(tmp_path: Path) -> None:
    artifact = exported.export(tmp_path, "web")
    found = artifacts.find(artifact)

    def state(status: str, digest: str) -> str:
        row = {"rung": "L0", "status": status, "figures": {"manifest_sha256": digest}}
        (artifact / "report.json").write_text(json.dumps({"checks": [row, {"rung": "L2", "status": "failed"}]}))
        return app_file.with_report(app_file.read(artifact), found).integers

    own = atomic.sha256(artifact / "manifest.json")
    assert [state(s, own) for s in ("passed", "failed", "not verified")] == ["passed", "failed", "not verified"]
    assert state("passed", "0" * 64) == "not verified"  # of another export
    [check] = [c for c in exported.checks(artifact, tmp_path / "folded", "L0") if c.name == "files"]
    assert check.figures["manifest_sha256"] == own
    (artifact / "tokenizer.json").write_text("{}")
    assert state("passed", own) == "not verified"  # changed since


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("message['content']", "message['content'] + loop.index|string"),
        CHATML.replace("{% for", "{{ 1/0 }}{% for"),
    ],
)
def test_a_template_that_three_texts_cannot_say(tmp_path: Path, template: str) -> None:
    model = models.fold_model(models.tiny(vocab_size=320))
    found = app_file.read(exported.export_model(tmp_path, "web", model, byte_tokenizer(template)))
    assert found.template == template
    assert found.turns is None
