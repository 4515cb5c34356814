# SPDX-License-Identifier: Apache-2.0
"""dlqat-app: what it writes, what it refuses and says, and who may ask its server."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import artifacts
import models
from dlqat import app_file, atomic
from dlqat import artifact as artifact_module
from dlqat.apps import cli, new, platforms, serve
from dlqat.apps.platforms import PLATFORMS
from dlqat.refusal import Refusal
from toy_tokenizer import byte_tokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an artifact for browsers and one for phones."""
    folder = tmp_path_factory.mktemp("new") / "m"
    model = models.fold_model(models.tiny(vocab_size=320))
    artifacts.export_model(folder, "web", model, byte_tokenizer()).rename(folder / "onnx-web")
    artifacts.export_folded(folder, "xnnpack").rename(folder / "executorch")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["dlqat-app", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.app()
    assert not exit_.value.code


@pytest.mark.parametrize("name", ["web", "react-native", "android"])
def test_an_app_is_the_template_with_the_model(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    run(monkeypatch, "new", model_dir, "--platform", name, "-o", tmp_path / "app")
    platform = PLATFORMS[name]
    assert capsys.readouterr().out == f"cd {tmp_path / 'app'} && {platform.then}\n"
    place = tmp_path / "app" / platform.model
    made = app_file.read(place)
    assert {n: atomic.sha256(place / n) for n in made.files} == {n: f.sha256 for n, f in made.files.items()}
    source = {p.relative_to(new.HERE / name) for p in (new.HERE / name).rglob("*") if p.is_file()}
    assert not [p for p in source if not (tmp_path / "app" / p).is_file()]
    assert platform.shared is None or (tmp_path / "app" / platform.shared / "model.ts").is_file()
    run(monkeypatch, "new", model_dir, "--platform", name, "-o", tmp_path / "app")  # again: nothing was edited
    (tmp_path / "app" / "mine.txt").write_text("x")
    monkeypatch.setattr(sys, "argv", ["x", "new", str(model_dir), "--platform", name, "-o", str(tmp_path / "app")])
    with pytest.raises(Refusal, match=r"mine\.txt"):
        cli.app(standalone_mode=False)


def test_every_platform_has_its_template_and_page() -> None:
    for name, platform in PLATFORMS.items():
        assert (new.HERE / name).is_dir()
        assert (ROOT / "docs" / "apps" / f"{name}.md").is_file()
        assert platform.then


def test_what_a_platform_cannot_run_is_refused(model_dir: Path, tmp_path: Path) -> None:
    found, app = new.described(model_dir / "executorch")
    assert "is executorch, and the web app runs onnx" in (platforms.fault("web", app, found) or "")
    change = msgspec.structs.replace
    assert "has no tokenizer" in (platforms.fault("android", change(app, eos=[]), found) or "")
    assert "has no chat template" in (platforms.fault("react-native", change(app, template=None), found) or "")
    large = {"model.pte": app_file.AppFile("0" * 64, 4 << 30)}
    web, description = new.described(model_dir / "onnx-web")
    assert "GB" in (platforms.fault("web", change(description, files=large), web) or "")
    with pytest.raises(Refusal, match="is executorch"):
        new.new("web", model_dir / "executorch", tmp_path / "app")
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize(
    "state", ["wrong: it writes another chat prompt", "does not load: x", "not set up: no tokenizer"]
)
def test_a_client_that_said_no_is_believed(model_dir: Path, tmp_path: Path, state: str) -> None:
    copy = tmp_path / "web"
    shutil.copytree(model_dir / "onnx-web", copy)
    content = json.loads((copy / "manifest.json").read_text())
    assert content["clients"]["transformers.js"].startswith("not verified")
    content["clients"]["transformers.js"] = state
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(Refusal, match=state):
        new.new("web", copy, tmp_path / "app")


def test_a_damaged_artifact_is_refused(model_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "web"
    shutil.copytree(model_dir / "onnx-web", copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(Refusal, match=r"tokenizer\.json: its sha256"):
        new.new("web", copy, tmp_path / "app")


def test_the_artifact_of_a_model(model_dir: Path, tmp_path: Path) -> None:
    assert new.artifact_of(model_dir, PLATFORMS["web"]) == model_dir / "onnx-web"
    assert new.artifact_of(model_dir, PLATFORMS["android"]) == model_dir / "executorch"
    assert new.artifact_of(model_dir / "onnx-web", PLATFORMS["web"]) == model_dir / "onnx-web"
    assert new.artifact_of(model_dir, PLATFORMS["ios"]) is None
    with pytest.raises(Refusal, match="neither a model_dir nor an artifact"):
        new.artifact_of(tmp_path, PLATFORMS["web"])


def test_a_model_that_was_checked_says_so_in_the_app(model_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "web"
    shutil.copytree(model_dir / "onnx-web", copy)
    figures = {"manifest_sha256": atomic.sha256(copy / "manifest.json")}
    (copy / "report.json").write_text(json.dumps({"checks": [{"rung": "L0", "status": "passed", "figures": figures}]}))
    assert new.new("web", copy, tmp_path / "app").integers == "passed"
    assert app_file.read(tmp_path / "app" / "public" / "model").integers == "passed"
    assert artifact_module.find(copy).manifest.files  # the artifact itself is as it was
    assert app_file.read(copy).integers == "not verified"


def test_serve_wants_an_app_or_an_artifact(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is executorch"):
        serve.site_of(model_dir / "executorch", 0)
    (tmp_path / "index.html").touch()
    (tmp_path / "sw.js").touch()
    (tmp_path / "model").mkdir()
    with pytest.raises(Refusal, match=app_file.NAME):
        serve.site_of(tmp_path, 0)
    shutil.copyfile(model_dir / "onnx-web" / app_file.NAME, tmp_path / "model" / app_file.NAME)
    with serve.site_of(tmp_path, 0) as site, pytest.raises(Refusal, match="is taken"):
        serve.site_of(tmp_path, site.server_address[1])
