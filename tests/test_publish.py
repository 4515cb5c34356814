# SPDX-License-Identifier: Apache-2.0
"""dlqat push against a local stand-in of the hub: what goes up, and what is refused before anything does."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import artifacts
import models
from dlqat import artifact as folders
from dlqat.runtime_tests.check.run import CheckRequest, prove
from dlqat.runtime_tests.report import record
from toy_tokenizer import byte_tokenizer


@dataclass
class Hub:
    """What was sent to the stand-in, by path in the repository."""

    address: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    refuses: bool = False


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The four calls of huggingface_hub's create_repo and create_commit, every file as a regular one."""
    told = Hub()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, answer = 200, {}
            if told.refuses:
                code, answer = 403, {"error": "no rights"}
            elif self.path == "/api/repos/create":
                told.created.append(json.loads(body))
                answer = {"url": f"{told.address}/me/tiny", "id": "me/tiny"}
            elif self.path.endswith("/preupload/main"):
                asked = json.loads(body)["files"]
                answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            elif self.path.endswith("/commit/main"):
                for line in body.splitlines():
                    row = json.loads(line)
                    if row["key"] == "file":
                        told.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                answer = {"commitUrl": f"{told.address}/me/tiny/commit/1", "commitOid": "1"}
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    told.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose integers were checked, and the model card of its base."""
    folder = tmp_path_factory.mktemp("push")
    model = models.fold_model(models.tiny("llama-tied", vocab_size=328))
    artifact = artifacts.export_model(folder, "gguf", model, byte_tokenizer())
    check(artifact)
    return artifact


def check(artifact: Path) -> None:
    found = prove(CheckRequest(folders.find(artifact), artifact.parent / "folded", rungs=("L0",)))
    assert found.verdict == "passed"
    record.write(found, artifact)


def push(hub: Hub, artifact: Path, *words: str, repository: str = "me/tiny") -> tuple[int, str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_nobody", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "dlqat.publish", str(artifact), repository, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_files_and_card_are_there(hub: Hub, checked: Path) -> None:
    code, said = push(hub, checked, "--private")
    assert code == 0, said
    assert hub.created[0]["visibility"] == "private"
    assert set(hub.files) == {"README.md", "badge.svg", "manifest.json", "dlqat-app.json", "model.gguf"}
    assert all(hub.files[name] == (checked / name).read_bytes() for name in hub.files)
    text = hub.files["README.md"].decode()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "gguf" and {"dlqat", "4-bit", "8-bit"} <= set(front["tags"])
    assert "llama-cli -m me/tiny/model.gguf" in text and "| L0 | integers" in text
    assert str(checked.parent) not in text
    assert "![dlqat: integers verified, 4 bit](badge.svg)" in text


def test_nothing_is_sent_in_a_dry_run(hub: Hub, checked: Path) -> None:
    code, said = push(hub, checked, "--dry-run")
    assert code == 0 and "5 files would go to me/tiny" in said and not hub.created


def test_the_hubs_own_words_are_shown(hub: Hub, checked: Path) -> None:
    hub.refuses = True
    code, said = push(hub, checked)
    assert code == 2
    last = said.splitlines()[-1]
    assert (
        last.startswith("error: me/tiny: the hub did not take it (") and "no rights" in last and "hf auth login" in last
    )


def test_what_was_not_proved_is_refused(hub: Hub, tmp_path: Path) -> None:
    model = models.fold_model(models.tiny("llama-tied", vocab_size=328))
    artifact = artifacts.export_model(tmp_path, "gguf", model, byte_tokenizer())
    assert "was not checked" in push(hub, artifact)[1]
    check(artifact)
    manifest = artifact / "manifest.json"
    before = manifest.read_bytes()
    manifest.write_bytes(before + b"\n")
    assert "is about other files than these" in push(hub, artifact)[1]
    manifest.write_bytes(before)
    report = json.loads((artifact / "report.json").read_text())
    (artifact / "report.json").write_text(json.dumps({**report, "verdict": "failed"}))
    assert "its check says failed" in push(hub, artifact)[1]
    check(artifact)
    (artifact / "README.md").write_text("mine")
    assert "README.md is not dlqat's" in push(hub, artifact)[1]
    (artifact / "model.gguf").write_bytes(b"GGUF")
    assert "model.gguf" in push(hub, artifact)[1]
    assert push(hub, artifact, repository="tiny")[0] == 2
    assert not hub.files and not hub.created


def test_the_licence_of_the_base_is_carried(tmp_path: Path) -> None:
    from dlqat import publish

    (tmp_path / "base").mkdir()
    (tmp_path / "dlqat.json").write_text(json.dumps({"source": str(tmp_path / "base")}))
    assert publish.licence(tmp_path) == ""
    (tmp_path / "base" / "README.md").write_text(
        "---\nlibrary_name: x\nlicense: apache-2.0\n---\n# Model\nlicense: no\n"
    )
    assert publish.licence(tmp_path) == "apache-2.0"
