# SPDX-License-Identifier: Apache-2.0
"""Node, headless Chromium and emulated ARM64: the ladder on each, and how a browser ends.

These run where `dlqat-devices --set-up` has fetched what they need (as CI does) and are skipped with the
device's own reason elsewhere.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import artifacts
from dlqat import artifact as folders
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure, Rewindable, Session
from dlqat.devices.process.child import Limits
from dlqat.devices.web import ort
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.check.linears import relative_error
from dlqat.runtime_tests.readers import read
from dlqat.runtime_tests.reference.arithmetic import PER_TOKEN, Arithmetic
from processes import all_gone, browser, tree

FLOAT32 = 2e-5
"""Largest difference of logits of about 3 between two float32 forwards (measured: 5e-6)."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp("far"), "ort", "llama-tied")


@pytest.fixture(scope="module")
def exported_pte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tmp_path_factory.mktemp("far-pte"), "xnnpack", "llama-tied")


def opened(name: str, exported: Path) -> Session:
    program, found = folders.find(exported).program, artifacts.runnable(name)
    return found.open(program, found.settings(program, 1)[0])


@pytest.mark.parametrize("name", ["node", "node-transformers", "host-genai", "browser-wasm", "qemu-arm64-ort"])
def test_the_ladder(exported: Path, name: str) -> None:
    """L1 and a short L2 in the device's first setting: every linear, logits of prefill and decode."""
    found = artifacts.climb(name, exported, "L1", "L2")
    assert {c.rung: c.status for c in found} == {"L1": "passed", "L2": "passed"}, [c.summary for c in found]


@pytest.mark.parametrize("name", ["host-genai", "node-transformers", "node-transformers@4.0"])
def test_a_client_on_the_folder_that_an_app_gives_it(tmp_path: Path, name: str) -> None:
    """The qdq form on every rung: greedy text and a chat with turns taken back go through the client's own cache."""
    folder = artifacts.export(tmp_path, "qdq", "llama-tied")
    found = artifacts.climb(name, folder, "L1", "L2", "L3", "L5", quick=False)
    assert {f"{c.rung} {c.name}": c.summary for c in found if c.status != "passed" and c.name != "stops"} == {}
    session = opened(name, folder)
    facts, client = session.facts(), "onnxruntime-genai" if name == "host-genai" else "transformers.js"
    session.close()
    assert facts["runtime"].startswith(f"{client} ")
    assert facts["kernels_of"].startswith("onnxruntime")


def test_genai_wants_its_config(tmp_path: Path) -> None:
    program = folders.find(artifacts.export(tmp_path, "ort", "llama-tied")).program
    (program.parents[1] / "genai_config.json").unlink()
    with pytest.raises(DeviceFailure, match=r"has no genai_config\.json beside or above it"):
        opened("host-genai", program.parents[1])


def test_executorch_on_arm64(exported_pte: Path) -> None:
    """KleidiAI's kernels behind XNNPACK round per token, as XNNPACK's own do on x86: linears, logits, greedy text."""
    found = artifacts.climb("qemu-arm64-executorch", exported_pte, "L1", "L2", "L3")
    statuses = {f"{c.rung} {c.name}": c.status for c in found if c.name != "stops"}  # a random model seldom stops
    assert statuses == dict.fromkeys(statuses, "passed"), [c.summary for c in found]
    assert {c.rung for c in found} == {"L1", "L2", "L3"}
    assert "int8 per token" in found[0].summary
    session: Any = opened("qemu-arm64-executorch", exported_pte)
    facts = session.facts()
    assert (facts["machine"], facts["runtime"][:11]) == ("aarch64", "executorch ")
    assert "asimddp" in facts["cpu_features"]
    assert {"emulation", "runner"} <= set(facts)
    session.truncate(0)
    with pytest.raises(DeviceFailure, match="not in the vocabulary"):
        session.logits([10**6])
    pids = tree(session._worker.pid)
    session.close()
    assert all_gone(pids)


def test_i8mm(exported_pte: Path) -> None:
    """KleidiAI's kernels for newer CPUs: the same arithmetic, and facts that say so."""
    found = artifacts.runnable("qemu-arm64-executorch")
    program = folders.find(exported_pte).program
    first, second = found.settings(program, 1)
    contents = read(program)
    weight = next(w for w in contents.weights if w.kind == "matmul" and w.load().block == 32)
    integers = weight.load()
    dense = integers.codes.astype(np.float64) * np.repeat(integers.scales.astype(np.float64), integers.block, 1)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(17, dense.shape[1])).astype(np.float32))
    (got,) = found.evaluate(weight.program(), [{weight.input: x.numpy()}], second)
    assert relative_error(got, PER_TOKEN.round(x).double().numpy() @ dense.T) < tolerances.LINEAR_ERROR
    for setting, expected in ((first, False), (second, True)):
        session = found.open(program, setting)
        assert ("i8mm" in session.facts()["cpu_features"]) == expected
        session.close()


def test_facts_of_node(exported: Path) -> None:
    """Version, machine, threads and the level that runs: what a report must say of every setting."""
    found, program = artifacts.runnable("node"), folders.find(exported).program
    session = found.open(program, found.settings(program, 2)[0])
    facts = session.facts()
    session.close()
    assert facts["runtime"].startswith("onnxruntime-node ")
    assert {"cpu", "cpu_features", "machine", "kleidiai", "node"} <= set(facts)
    assert (facts["threads"], facts["accuracy_level"]) == (2, 4)


def test_half_a_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm was stopped in the middle, DLQAT_CHROMIUM names nothing, Node hangs: the reason, before any work."""
    monkeypatch.setenv("DLQAT_DEVICES", str(tmp_path))
    for package in ("onnxruntime-web", "onnxruntime-node"):
        (tmp_path / "npm" / "node_modules" / package).mkdir(parents=True)
        (tmp_path / "npm" / "node_modules" / package / "package.json").touch()
    assert "or not wholly; dlqat-devices --set-up web" in str(DEVICES["node"].available())
    (tmp_path / "npm" / "ready").touch()
    monkeypatch.setenv("DLQAT_CHROMIUM", "/no/such/chromium")
    assert DEVICES["browser-wasm"].available() == "DLQAT_CHROMIUM names /no/such/chromium, which is not a program"
    (tmp_path / "node").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "node").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ort, "ASK", 0.5)
    ort.node_fault.cache_clear()
    assert "node does not say its version" in str(DEVICES["node"].available())
    ort.node_fault.cache_clear()


@pytest.mark.parametrize("name", ["browser-wasm", "browser-wasm-threads"])
def test_a_session_in_a_browser(exported: Path, name: str) -> None:
    """Prefill, decode, rewind and reset give the host's float numbers; facts say what ran; nothing stays behind."""
    program, host = folders.find(exported).program, DEVICES["host-ort"]
    here, there = host.open(program, host.settings(program, 1)[0]), opened(name, exported)
    assert isinstance(here, Rewindable)
    assert isinstance(there, Rewindable)
    for step in ([5, 6, 7, 8], [9]):
        assert np.abs(here.logits(step) - there.logits(step)).max() < FLOAT32
    for session in (here, there):
        session.truncate(2)
    assert np.abs(here.logits([11]) - there.logits([11])).max() < FLOAT32
    for session in (here, there):
        session.reset()
    assert np.abs(here.logits([1]) - there.logits([1])).max() < FLOAT32
    with pytest.raises(DeviceFailure, match="not in the vocabulary"):
        there.logits([10**6])
    facts = there.facts()
    assert str(facts["runtime"]).startswith("onnxruntime-web ")
    assert facts["cross_origin_isolated"] is True
    assert facts["threads"] == (2 if name.endswith("threads") else 1)
    pids = tree(there._worker.pid)
    there.close()
    assert all_gone(pids)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both forms of a model whose rows can be cut into blocks of 128."""
    place, shape = tmp_path_factory.mktemp("wide"), {"hidden_size": 128, "intermediate_size": 256}
    return {form: artifacts.export(place / form, form, "llama-tied", **shape) for form in ("qdq", "ort")}


def test_the_qdq_form_in_node(wide: dict[str, Path]) -> None:
    """Linears and logits, in its first setting (float)."""
    found = artifacts.climb("node", wide["qdq"], "L1", "L2")
    assert {c.rung: c.status for c in found} == {"L1": "passed", "L2": "passed"}, [c.summary for c in found]


def test_webgpu_in_float(wide: dict[str, Path]) -> None:
    """The qdq form on a software adapter: a prompt of 40 tokens and one more, as on the host."""
    program, host = folders.find(wide["qdq"]).program, DEVICES["host-ort"]
    here, there = host.open(program, host.settings(program, 1)[0]), opened("browser-webgpu", wide["qdq"])
    for step in ([i * 37 % 160 for i in range(40)], [9]):
        assert np.abs(here.logits(step) - there.logits(step)).max() < FLOAT32
    assert there.facts()["webgpu_adapter"]


def test_webgpu_at_level_4(wide: dict[str, Path]) -> None:
    """Each MatMulNBits of the ort form rounds in blocks of 128; attention is refused where subgroups are too small."""
    program, found = folders.find(wide["ort"]).program, artifacts.runnable("browser-webgpu")
    (setting, *_) = found.settings(program, 1)
    assert setting.activations == "int8"
    weight = next(w for w in read(program).weights if w.kind == "matmul")
    integers = weight.load()
    dense = integers.codes.astype(np.float64) * np.repeat(integers.scales.astype(np.float64), integers.block, 1)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(17, dense.shape[1])).astype(np.float32))
    (got,) = found.evaluate(weight.program(), [{weight.input: x.numpy()}], setting)
    assert relative_error(got, Arithmetic(128).round(x).double().numpy() @ dense.T) < tolerances.LINEAR_ERROR
    try:
        session = found.open(program, setting)
    except DeviceFailure as refused:
        assert "forgets keys from 32 tokens on" in str(refused)  # noqa: PT017 real GPUs have larger subgroups
    else:
        assert session.facts()["subgroup_sizes"][1] >= 8


def test_chromium_crashes(exported: Path) -> None:
    """Its main process is killed in the middle: one line, nothing hangs, no process is left."""
    session: Any = opened("browser-wasm", exported)
    session.logits([1, 2])
    pids = tree(session._worker.pid)
    main = browser(pids)
    assert main is not None
    os.kill(main, signal.SIGKILL)
    with pytest.raises(DeviceFailure, match="browser-wasm|the page failed"):
        session.logits([3])
    session.close()
    assert all_gone(pids)


def test_chromium_hangs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of the browser is stopped: the time limit of the call, and nothing stays, not even they."""
    session: Any = opened("browser-wasm", exported)
    session.logits([1, 2])
    pids = tree(session._worker.pid)
    for pid in pids[2:]:  # all but our worker and playwright's driver
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(session, "_limits", Limits(call=2.0, token=0.0))
    with pytest.raises(DeviceFailure, match=r"browser-wasm did not answer within 2 s \(logits\); it was stopped"):
        session.logits([3])
    session.close()
    assert all_gone(pids)


def test_a_truncated_program(exported: Path, tmp_path: Path) -> None:
    """Node says that it does not load it, in a sentence."""
    damaged = artifacts.damaged(
        exported, tmp_path / "x", "onnx/model.onnx", lambda content: content.__delitem__(slice(4000, None))
    )
    with pytest.raises(DeviceFailure):
        opened("node", damaged)


def test_kleidiai_rounds_per_token(exported: Path) -> None:
    """On ARM64 level 4 is KleidiAI's per-token rounding, and MLAS's blocks where KleidiAI is off: each as stated."""
    program, found = folders.find(exported).program, artifacts.runnable("qemu-arm64-ort")
    weight = next(w for w in read(program).weights if w.kind == "matmul")
    integers = weight.load()
    dense = integers.codes.astype(np.float64) * np.repeat(integers.scales.astype(np.float64), integers.block, 1)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(17, dense.shape[1])).astype(np.float32))
    settings = [s for s in found.settings(program, 1) if s.activations == "int8" and s.optimize]
    assert [bool(s.options) for s in settings] == [False, True]
    blocks = Arithmetic(integers.block)
    for setting, right, wrong in zip(settings, (PER_TOKEN, blocks), (blocks, PER_TOKEN), strict=True):
        (got,) = found.evaluate(weight.program(), [{weight.input: x.numpy()}], setting)
        assert relative_error(got, right.round(x).double().numpy() @ dense.T) < tolerances.LINEAR_ERROR
        assert relative_error(got, wrong.round(x).double().numpy() @ dense.T) > 1e-3


def test_ties_on_arm64(exported: Path) -> None:
    """KleidiAI rounds halves away from zero, MLAS without it too, by the reciprocal of the scale: not as on x86."""
    program, found = folders.find(exported).program, artifacts.runnable("qemu-arm64-ort")
    weight = next(w for w in read(program).weights if w.kind == "matmul" and w.load().codes.shape[1] == 64)
    integers = weight.load()
    dense = torch.from_numpy(integers.codes * np.repeat(integers.scales.astype(np.float64), integers.block, 1))
    tops = torch.from_numpy(np.random.default_rng(0).uniform(0.5, 1, (64, 1)).astype(np.float32))
    in_blocks = (torch.arange(64.0) % 32 + 0.5) * tops / 127.0  # in the middle between two codes, or a last bit off
    in_blocks[:, ::32] = tops
    in_tokens = torch.arange(64.0).repeat(2, 1) - 31.5
    in_tokens[:, 0], in_tokens[:, -1] = -127.0, 128.0  # the factor is 1
    settings = [s for s in found.settings(program, 1) if s.activations == "int8" and s.optimize]
    for setting, arithmetic, x in zip(
        settings, (PER_TOKEN, Arithmetic(integers.block)), (in_tokens, in_blocks), strict=True
    ):
        there, here = ((r.double() @ dense.T).numpy() for r in reversed(list(arithmetic.roundings(x))))
        (got,) = found.evaluate(weight.program(), [{weight.input: x.numpy()}], setting)
        assert relative_error(got, there) < tolerances.LINEAR_ERROR
        assert relative_error(got, here) > tolerances.LINEAR_ERROR
