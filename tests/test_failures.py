# SPDX-License-Identifier: Apache-2.0
"""What goes wrong under a running command: its exit code, what it says, and that no process stays behind.

The single failures are in test_child.py, test_android.py and test_far_devices.py; here dlqat-check and dlqat-eval run
as programs, and something is killed, damaged or not a number beneath them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import artifacts
from dlqat import artifact as folders
from dlqat.devices.all import DEVICES
from dlqat.runtime_tests.check import controls
from dlqat.runtime_tests.readers import read
from processes import all_gone, browser, tree, words

CHECK, EVAL = "dlqat.runtime_tests.cli", "dlqat.runtime_tests.eval_cli"
SECONDS = 240
"""No command may take longer, whatever is done to it."""


@dataclass(frozen=True)
class Done:
    code: int
    said: str
    left: list[int]
    """Processes that it had started and that did not end with it."""


def run(module: str, *arguments: object, disturb: Callable[[list[int]], bool] | None = None) -> Done:
    """A command as a program. `disturb(pids)` is called with its processes, itself first, until it has done its harm."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--threads", "1"]
    environment = {**os.environ, "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    seen: set[int] = set()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        end = time.monotonic() + SECONDS
        while disturb is not None and process.poll() is None and time.monotonic() < end:
            seen |= set(tree(process.pid))
            if disturb([process.pid, *sorted(seen - {process.pid})]):  # numbers of processes begin again some day
                break
            time.sleep(0.02)
        said, _ = process.communicate(timeout=SECONDS)
    left = [] if all_gone(sorted(seen)) else [pid for pid in seen if words(pid)]
    return Done(process.returncode, said, left)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp("failures"), "ort", "llama-tied")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The cat sat on the mat, and the dog did not. " * 400)
    return path


def failures(folder: Path) -> dict[str, str]:
    checks = json.loads((folder / "report.json").read_text())["checks"]
    return {f"{c['rung']} {c['name']}": c["summary"] for c in checks if c["status"] == "failed"}


def needs(name: str) -> None:
    if (reason := DEVICES[name].available()) is not None:
        pytest.skip(f"{name}: {reason}")


def test_the_runtime_is_killed_under_dlqat_eval(exported: Path, text: Path, tmp_path: Path) -> None:
    """Exit code 1 and a sentence; what was answered is kept, and the same command ends with the whole result."""
    journal = tmp_path / ".dlqat-eval"

    def disturb(pids: list[int]) -> bool:
        workers = [p for p in pids if "dlqat.devices.process.worker" in words(p)]
        if not workers or not any(f.stat().st_size for f in journal.glob("*.jsonl")):
            return False
        os.kill(workers[0], signal.SIGKILL)
        return True

    asked = (EVAL, exported, "--no-reference", "--text", text, "--output", tmp_path)
    done = run(*asked, disturb=disturb)
    assert (done.code, done.left) == (1, [])
    assert "failed: host-ort crashed (SIGKILL) during " in done.said
    assert "answers so far are kept, the same command goes on with them" in done.said
    assert not (tmp_path / "eval-host-ort.json").exists()
    assert run(*asked).code == 0
    assert (tmp_path / "eval-host-ort.json").exists()


def test_a_check_is_terminated(exported: Path, tmp_path: Path) -> None:
    """SIGTERM in the middle of a negative control (a CI's time-out): no copy of the artifact stays, and no process."""
    model = tmp_path / "model"
    shutil.copytree(exported.parent, model)

    def disturb(pids: list[int]) -> bool:
        if not list(model.glob(".dlqat-check-*")):
            return False
        os.kill(pids[0], signal.SIGTERM)
        return True

    done = run(CHECK, model / exported.name, "--level", "L5", "--output", tmp_path / "out", disturb=disturb)
    assert (done.code, done.left) == (128 + signal.SIGTERM, [])
    assert not list(model.glob(".dlqat-check-*"))


def test_chromium_crashes_under_dlqat_check(exported: Path, tmp_path: Path) -> None:
    """The rung fails with the reason, the report is written, nothing stays."""
    needs("browser-wasm")

    def disturb(pids: list[int]) -> bool:
        if (main := browser(pids)) is None:
            return False
        os.kill(main, signal.SIGKILL)
        return True

    done = run(CHECK, exported, "--device", "browser-wasm", "--level", "L2", "--output", tmp_path, disturb=disturb)
    assert (done.code, done.left) == (1, [])
    (summary,) = failures(tmp_path).values()
    assert any(part in summary for part in ("browser-wasm", "the page failed", "Chromium"))
    assert "Traceback" not in done.said


@pytest.mark.parametrize("name", ["host-ort", "node"])
def test_one_code_flipped(exported: Path, tmp_path: Path, name: str) -> None:
    """Near and far: the integers say which tensor, and no linear of that device is passed with it."""
    needs(name)
    found = folders.find(exported)
    weight = controls.target(read(found.program), "codes")
    assert weight is not None
    with controls.altered(found, weight.spans["codes"], lambda content: content.__setitem__(0, content[0] ^ 8)) as bad:
        shutil.copytree(bad.folder, tmp_path / "ort")
    reference = ("--reference", exported.parent / "folded")
    done = run(CHECK, tmp_path / "ort", *reference, "--device", name, "--level", "L0", "--level", "L1")
    assert (done.code, done.left) == (1, [])
    wrong = failures(tmp_path / "ort")
    assert f"{weight.name}: 1 of " in wrong["L0 integers of model.onnx"]
    checks = json.loads((tmp_path / "ort" / "report.json").read_text())["checks"]
    linears = [c for c in checks if c["rung"] == "L1"]
    assert linears
    assert all(c["status"] != "passed" and weight.name in c["summary"] for c in linears), linears


@pytest.mark.parametrize("name", ["host-ort", "node"])
def test_a_truncated_artifact(exported: Path, tmp_path: Path, name: str) -> None:
    needs(name)
    data = "onnx/model.onnx_data"
    bad = artifacts.damaged(exported, tmp_path / "ort", data, lambda content: content.__delitem__(slice(30_000, None)))
    reference = ("--reference", exported.parent / "folded")
    done = run(CHECK, bad, *reference, "--device", name, "--level", "L0", "--level", "L2")
    assert (done.code, done.left) == (1, [])
    wrong = failures(bad)
    assert f"{data}: its sha256 is not the one in manifest.json" in wrong["L0 files"]
    assert any(rung.startswith("L2") for rung in wrong), wrong
    assert "Traceback" not in done.said


def test_nan_under_dlqat_eval(exported: Path, text: Path, tmp_path: Path) -> None:
    """A scale that is NaN: the runtime says nothing, dlqat-eval does, and writes no result."""

    def nan(content: bytearray) -> None:
        np.frombuffer(content, np.float32)[:] = np.nan

    found = folders.find(exported)
    weight: Any = controls.target(read(found.program), "scales")
    with controls.altered(found, weight.spans["scales"], nan) as bad:
        done = run(EVAL, bad.folder, "--no-reference", "--text", text, "--output", tmp_path)
    assert done.code == 1
    assert "failed: NaN or infinite logits among " in done.said
    assert not list(tmp_path.glob("eval-*.json"))
