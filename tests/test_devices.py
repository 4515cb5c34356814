# SPDX-License-Identifier: Apache-2.0
"""Devices run what they are given as they are told, or say why not. Real onnxruntime, no stand-ins."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

import artifacts
import onnx_by_hand as hand
from artifacts import FORMS
from dlqat import artifact as folders
from dlqat import atomic
from dlqat.devices import machine
from dlqat.devices.all import DEVICES, device
from dlqat.devices.device import DeviceFailure, Setting
from dlqat.refusal import Refusal
from dlqat.runtime_tests.check.run import CheckRequest, prove
from dlqat.runtime_tests.readers import read

HOST = DEVICES["host-ort"]
IDS = [5, 9, 77, 3, 150, 20, 21, 22, 8, 11, 12, 140]


@pytest.fixture(scope="module", params=FORMS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp(request.param), request.param)


def test_devices_by_name() -> None:
    """Law 6: every device either runs here or says why not."""
    for name, found in DEVICES.items():
        assert found.name == name
        assert found.available() is None or len(str(found.available())) > 10
    with pytest.raises(Refusal, match=r"'phone' is not known; known: host-ort"):
        device("phone", "onnx")


def test_a_missing_runtime_is_told(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    """Not installed: what is missing and the command that helps."""
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda _: None)
        assert HOST.available() == "onnxruntime and onnx not installed; pip install 'dlqat[onnx]'"
        with pytest.raises(Refusal, match="host-ort cannot run here: onnxruntime and onnx not installed"):
            prove(CheckRequest(folders.find(exported), exported.parent / "folded"))
    assert HOST.available() is None


def test_settings(exported: Path) -> None:
    """Float first. Without graph optimizations the qdq form has no int8 kernels, so that setting does not exist."""
    settings = [str(s) for s in HOST.settings(folders.find(exported).program, 2)]
    assert settings[:3] == ["float, optimized", "float, not optimized", "int8, optimized"]
    assert settings[3:] == (["int8, not optimized"] if exported.name == "ort" else [])


def test_chunks_are_one_text(exported: Path) -> None:
    """Prefill at once, in chunks, token by token, and again after a reset: the same logits."""
    session = HOST.open(folders.find(exported).program, Setting())
    whole = session.logits(IDS)
    assert whole.shape == (len(IDS), 160)
    assert whole.dtype == np.float32
    for chunks in ((5, 7), (1,) * 12, (11, 1)):
        session.reset()
        starts = np.cumsum((0, *chunks))
        rows = [session.logits(IDS[a:b]) for a, b in pairwise(starts)]
        np.testing.assert_allclose(np.concatenate(rows), whole, atol=2e-5)
    assert session.timings.decode_tokens == 12 + 1
    assert session.timings.prefill_tokens == 12 + 12 + 11
    session.close()


def test_the_generator_gives_the_last_row(exported: Path) -> None:
    found = folders.find(exported)
    whole, last = (HOST.open(p, Setting()).logits(IDS) for p in (found.program, found.generator))
    assert last.shape == (1, 160)
    np.testing.assert_allclose(last[0], whole[-1], atol=2e-5)


def test_levels(exported: Path) -> None:
    """The level of activations is really another computation, and choosing it leaves the files alone."""
    found = folders.find(exported)
    before = atomic.sha256(found.program)
    rows = {s: HOST.open(found.program, s).logits(IDS) for s in HOST.settings(found.program, 1)}
    floats = [rows[Setting("float", optimize, 1)] for optimize in (True, False)]
    np.testing.assert_allclose(floats[0], floats[1], atol=2e-5)
    assert np.abs(rows[Setting("int8", True, 1)] - floats[0]).max() > 1e-3
    assert atomic.sha256(found.program) == before


def test_facts(exported: Path) -> None:
    """What ran: versions, machine, threads, and the kernels by onnxruntime's own account."""
    program = folders.find(exported).program
    facts = HOST.open(program, Setting("float", True, 1)).facts()
    assert facts["runtime"].startswith("onnxruntime 1.")
    assert (facts["accuracy_level"], facts["threads"], facts["graph_optimization"]) == (0, 1, "ORT_ENABLE_ALL")
    assert facts["kernels"]["MatMulNBits"] == 9  # qkv, o, gate and up, down in two blocks, and the head
    plain = HOST.open(program, Setting("int8", False, 1)).facts()
    assert plain["accuracy_level"] == 4
    expected = {"ort": "MatMulNBits", "qdq": "DequantizeLinear"}[exported.name]
    assert plain["kernels"][expected] >= 9
    assert json.loads(json.dumps(facts)) == facts
    assert machine.facts()["machine"]


def test_damaged_programs(exported: Path, tmp_path: Path) -> None:
    """A runtime's refusal is one line, at load or at run."""

    def half(content: bytearray) -> None:
        del content[len(content) // 2 :]

    short = artifacts.damaged(exported, tmp_path / "short", "onnx/model.onnx_data", half)
    with pytest.raises(DeviceFailure, match="does not load it") as caught:
        HOST.open(folders.find(short).program, Setting())
    assert "\n" not in str(caught.value)
    broken = artifacts.damaged(exported, tmp_path / "broken", "onnx/model.onnx", half)
    with pytest.raises(DeviceFailure, match="is no ONNX model"):
        HOST.settings(folders.find(broken).program, 1)
    with pytest.raises(DeviceFailure, match="token 160 is not in the vocabulary of 160"):
        HOST.open(folders.find(exported).program, Setting()).logits([3, 160])
    weight = read(folders.find(exported).program).weights[-1]
    with pytest.raises(DeviceFailure, match="does not run it"):
        HOST.evaluate(weight.program(), [{weight.input: np.ones((1, 63), np.float32)}], Setting())


def test_commands_for_a_damaged_program(tmp_path: Path) -> None:
    """dlqat-devices --print-commands reads the program: one line and exit code 2."""
    (tmp_path / "model.onnx").write_bytes(b"no model")
    command = [sys.executable, "-m", "dlqat.devices.cli", "--print-commands", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/model.onnx is no ONNX model (")
    assert line.endswith("; export again")


def test_unknown_inputs(tmp_path: Path) -> None:
    """A graph that wants what no decoder of ours wants is refused, not fed with something."""
    matrix = {"codes": np.ones((4, 16), np.int8), "scales": np.ones((4, 1), np.float32), "zeros": None}
    path = hand.save(hand.model(*hand.qdq("a", **matrix, bits=8)), tmp_path)
    model = onnx.load(str(path))
    model.opset_import[0].version = 21
    model.ir_version = 10
    onnx.save(model, str(path))
    with pytest.raises(DeviceFailure, match="inputs that no decoder of ours has: x"):
        HOST.open(path, Setting())


# Finding an artifact


def test_find(exported: Path, tmp_path: Path) -> None:
    """The manifest names the program, genai_config.json what apps run."""
    found = folders.find(exported)
    assert [p.name for p in found.programs] == ["model.onnx", "model_generate.onnx"]
    assert found.format == "onnx"
    assert found.manifest.context == artifacts.CONTEXT
    assert not list(folders.damage(found))
    assert set(found.manifest.source.folded) >= {"model.safetensors", "integers.safetensors"}


def test_find_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    found = folders.find(tmp_path)
    assert found.programs == (tmp_path / "onnx" / "model.onnx",)
    (tmp_path / "other.onnx").touch()
    with pytest.raises(Refusal, match=r"holds 2 programs \(model.onnx, other.onnx\)"):
        folders.find(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (None, "holds no program"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"model": "model.onnx"}', "model.onnx is missing"),
        ('{"model": "../model.onnx"}', "not a program of this folder"),
        ('{"model": "model.bin"}', "not a program of this folder"),
        ('{"files": ["model.onnx"]}', r"Expected object, got array at \$.files; export again"),
        ('{"files": {"model.onnx": "12ab"}}', r"Expected object, got str at \$.files.*; export again"),
        ('{"context": "128"}', r"Expected int \| null, got str at \$.context; export again"),
        ('{"context": 0}', r"Expected int >= 1 at \$.context"),
        ('{"context": true}', r"got bool at \$.context"),
    ],
)
def test_find_refuses(tmp_path: Path, manifest: str | None, says: str) -> None:
    folder = tmp_path / "artifact"
    with pytest.raises(Refusal, match="is not a folder"):
        folders.find(folder)
    folder.mkdir()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(Refusal, match=says):
        folders.find(folder)


def test_damage_is_named(exported: Path, tmp_path: Path) -> None:
    """Missing, changed and foreign files of a manifest."""

    def flip(content: bytearray) -> None:
        content[100] ^= 1

    copy = artifacts.damaged(exported, tmp_path / "copy", "onnx/model.onnx_data", flip)
    (copy / "config.json").unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../elsewhere"] = {"sha256": "0"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    told = list(folders.damage(folders.find(copy)))
    assert [t.split(":")[0] for t in told] == ["../elsewhere", "config.json", "onnx/model.onnx_data"]
    assert "leads out of its folder" in told[0]
    assert "missing" in told[1]
    assert "sha256" in told[2]
