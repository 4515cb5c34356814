# SPDX-License-Identifier: Apache-2.0
"""The Android app's Kotlin, compiled against stand-ins (android_stubs/) that have the signatures of the AAR's published
sources, and its own classes run on a JVM: copies with digests, prompts, call order, evaluation. No APK, no Android."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import artifacts
import models
from dlqat import app_file, atomic
from dlqat import artifact as artifact_module
from dlqat.apps import new
from dlqat.fetched import home
from dlqat.runtime_tests.eval import answers
from toy_tokenizer import byte_tokenizer

STUBS = Path(__file__).parent / "android_stubs"
ASSETS = Path("app/src/main/assets")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = models.fold_model(models.tiny(vocab_size=320))
    return artifacts.export_model(tmp_path_factory.mktemp("android"), "xnnpack", model, byte_tokenizer())


@pytest.fixture(scope="module")
def app(artifact: Path) -> Path:
    new.new("android", artifact, artifact.parent / "app")
    return artifact.parent / "app"


@pytest.fixture(scope="module")
def classes(app: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path of the compiled app."""
    jars = home() / "kotlin" / "usr" / "share" / "java"
    compiler = jars / "kotlin-compiler-1.3.31.jar"
    if shutil.which("java") is None or not compiler.is_file():
        pytest.skip("needs Java 17 and dlqat-devices --set-up kotlin")
    out = tmp_path_factory.mktemp("classes")
    libraries = f"{jars / 'kotlin-stdlib.jar'}:{jars / 'com.android.json.jar'}"
    others = [str(jar) for jar in jars.glob("*.jar") if "embeddable" not in jar.name and "1.3.31" not in jar.name]
    sources = [str(path) for place in (app, STUBS) for path in sorted(place.rglob("*.kt"))]
    compile_ = ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-no-reflect", "-classpath", libraries]
    command = ["java", "-Xmx1g", "-noverify", "-cp", ":".join([str(compiler), *others]), *compile_, "-d", str(out)]
    done = subprocess.run([*command, *sources], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"{out}:{libraries}"


def probe(classes: str, assets: Path, files: Path) -> list[str]:
    files.mkdir(exist_ok=True)
    command = ["java", "-cp", classes, "org.dlqat.chat.ProbeKt", str(assets), str(files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_two_turns_and_an_evaluation(artifact: Path, app: Path, classes: str, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "Paris."}]}
    tasks = tmp_path / "files" / "tasks.jsonl"
    tasks.parent.mkdir()
    tasks.write_text(json.dumps(row) + "\n")
    said = probe(classes, app / ASSETS, tmp_path / "files")
    turns = app_file.read(artifact).turns
    assert turns is not None
    prompts = [turns.prompt(c) for c in (["Hi"], ["Hi", "Paris.", "And?"], ["Capital?"])]
    calls = [line.removeprefix("log ") for line in said if line.startswith("log ")]
    asked = [f"generate echo=false seqLen={artifacts.CONTEXT} main=false {p}".replace("\n", "\\n") for p in prompts]
    assert calls == ["open true true 0.0", "load", *(c for a in asked for c in ("resetContext", a))]
    assert [line for line in said if line.startswith("answer")] == ["answer Paris. | end token"] * 2
    assert "heard Paris." in said
    assert not [line for line in said if "</s>" in line and line.startswith("heard")]
    result = answers.score(artifact_module.find(artifact), None, tasks, tmp_path / "files" / "answers.json")
    assert (result["device"], result["tasks"]["tasks"]["exact"]["artifact"]["value"]) == ("app-android", 1.0)


def test_a_tampered_asset_is_refused(app: Path, classes: str, tmp_path: Path) -> None:
    shutil.copytree(app / ASSETS, tmp_path / "assets")
    (tmp_path / "assets" / "model" / "tokenizer.json").write_text("{}")
    said = probe(classes, tmp_path / "assets", tmp_path / "files")
    assert said[0].startswith("failed tokenizer.json is not the file that dlqat-app.json names (sha256 ")
    assert not list((tmp_path / "files").glob("*tokenizer*"))


def test_a_damaged_copy_is_made_again(artifact: Path, app: Path, classes: str, tmp_path: Path) -> None:
    probe(classes, app / ASSETS, tmp_path / "files")
    [copy] = (tmp_path / "files").glob("*model.pte")
    copy.write_bytes(b"half")
    assert not [line for line in probe(classes, app / ASSETS, tmp_path / "files") if line.startswith("failed")]
    assert atomic.sha256(copy) == app_file.read(artifact).files["model.pte"].sha256
