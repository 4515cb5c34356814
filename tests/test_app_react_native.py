# SPDX-License-Identifier: Apache-2.0
"""The React Native app as far as a machine without phones allows: types, Metro's bundle, Hermes' bytecode (`make
app-react-native`), and its src/talk.ts over react-native-executorch's own published JavaScript in Node.

The native runner is a stand-in: executorch's `forward` and C++ tokenizer behind two pipes (react_native/runner.py)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from transformers import AutoTokenizer

import artifacts
import models
from dlqat import app_file
from dlqat import artifact as artifact_module
from dlqat.apps import new
from dlqat.fetched import home
from dlqat.runtime_tests.eval import answers
from toy_tokenizer import CHATML, byte_tokenizer

HERE = Path(__file__).parent / "react_native"
REAL = os.environ.get("DLQAT_APPS") == "real"
BOS = "{{ bos_token }}" + CHATML
REWRITES = CHATML.replace("message['content']", "message['content'] + ('' if loop.last else ' (earlier)')")


@pytest.fixture(scope="module")
def modules() -> Path:
    """node_modules of the app's package.json, kept with what dlqat-devices fetches."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on PATH")
    package = new.HERE / "react-native" / "package.json"
    folder = home() / f"react-native-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "ready").is_file():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(package, folder / "package.json")
            command = [
                "npm",
                "install",
                "--legacy-peer-deps",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--silent",
            ]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
            if done.returncode:
                pytest.skip(f"npm install says {(done.stdout + done.stderr).strip()[:300]}")
            (folder / "ready").touch()
    return folder / "node_modules"


def app_of(artifact: Path, folder: Path, modules: Path) -> Path:
    new.new("react-native", artifact, folder)
    (folder / "node_modules").symlink_to(modules)  # Node follows a link, Metro does not
    return folder


def export(folder: Path, template: str = CHATML, **changes: Any) -> Path:
    model = models.fold_model(models.tiny(vocab_size=320, max_position_embeddings=512, **changes))
    return artifacts.export_model(folder, "xnnpack", model, byte_tokenizer(template), context=512)


def drive(app: Path, work: Path, **order: Any) -> dict[str, Any]:
    """Answers of 8 tokens: a random model does not end."""
    work.mkdir()
    runner = json.dumps([sys.executable, str(HERE / "runner.py")])
    environment = {**os.environ, "APP": str(app), "MODEL": str(app / "model"), "PIPES": str(work), "RUNNER": runner}
    done = subprocess.run(
        ["node", "--no-warnings", str(HERE / "drive.mjs")],
        input=json.dumps({"longest": 8, **order}),
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wanted(app: Path, *contents: str) -> str:
    """The answer to a conversation that is read from its beginning, in one piece."""
    messages = [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(contents)]
    tokenizer = AutoTokenizer.from_pretrained(app.parent / "m" / "folded")
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    code = (
        f"import json, sys; sys.path.insert(0, {str(HERE)!r}); import runner; "
        "model, tokenizer, prompt = sys.argv[1:]; "
        "print(json.dumps(runner.Runner(model, tokenizer).on_generate(prompt, 8)['tokens']))"
    )
    files = [str(app / "model" / name) for name in ("model.pte", "tokenizer.json")]
    found = subprocess.run([sys.executable, "-c", code, *files, prompt], capture_output=True, text=True, check=True)
    return "".join(json.loads(found.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> Path:
    folder = tmp_path_factory.mktemp("rn")
    return app_of(export(folder / "m"), folder / "app", modules)


def test_two_turns(app: Path, tmp_path: Path) -> None:
    """The package prefills, generates, rewinds to the question and prefills the answer as the template writes it."""
    found = drive(app, tmp_path / "w", turns=["Hi", "And now?"])
    assert "error" not in found, found
    first, second = found["turns"]
    assert first["text"] == wanted(app, "Hi") == first["heard"]
    assert second["text"] == wanted(app, "Hi", first["text"], "And now?")
    resets = [line for line in found["log"] if line.startswith("reset")]
    assert found["log"][:4] == ["reset 0", "prefill", "generate", resets[1]]
    assert 0 < int(resets[1].split()[1]) < int(resets[2].split()[1]) <= second["kv"]


def test_a_template_with_bos_token(tmp_path: Path, modules: Path) -> None:
    """The package renders it without values: the export wrote the token itself into tokenizer_config.json."""
    app = app_of(export(tmp_path / "m", BOS), tmp_path / "app", modules)
    description = app_file.read(app / "model")
    assert description.special["bos_token"] == "<s>"
    assert "error" not in drive(app, tmp_path / "w", turns=["Hi"])
    config = app / "model" / "tokenizer_config.json"
    assert json.loads(config.read_text())["chat_template"].startswith('{% set bos_token = "<s>" %}')


def test_a_template_that_rewrites_earlier_turns_is_said(tmp_path: Path, modules: Path) -> None:
    app = app_of(export(tmp_path / "m", REWRITES), tmp_path / "app", modules)
    found = drive(app, tmp_path / "w", turns=["Hi", "And now?"])
    assert "monoton" in found["error"] or "template" in found["error"], found


def test_evaluation_without_a_cable(app: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "Paris."}]} for q in ("A?", "B?")
    ]
    tasks = "".join(json.dumps(row) + "\n" for row in rows)
    digest = hashlib.sha256(tasks.encode()).hexdigest()
    report = drive(app, tmp_path / "w", tasks=tasks, digest=digest)["report"]
    found = json.loads(report)
    description = app_file.read(app / "model")
    assert found["model"]["sha256"] == description.files["model.pte"].sha256
    assert (found["platform"], found["tasks"], len(found["answers"])) == ("react-native", digest, 2)
    (tmp_path / "tasks.jsonl").write_text(tasks)
    (tmp_path / "answers.json").write_text(report)
    artifact = artifact_module.find(app.parent / "m" / "xnnpack")
    result = answers.score(artifact, None, tmp_path / "tasks.jsonl", tmp_path / "answers.json")
    assert (result["device"], len(result["prompts"])) == ("app-react-native", 2)
    assert drive(app, tmp_path / "x", tasks="{}\n", digest=digest)["error"].startswith("line 1 has no")


@pytest.mark.skipif(not REAL, reason="make app-react-native")
def test_types_bundle_and_bytecode(app: Path, modules: Path) -> None:
    (app / "node_modules").unlink()
    shutil.copytree(modules, app / "node_modules", symlinks=True)
    done = subprocess.run(["npm", "run", "check"], cwd=app, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for platform in ("android", "ios"):
        assert (app / "dist" / f"main.{platform}.hbc").read_bytes()[:8] == bytes.fromhex("c61fbc03c103191f")
