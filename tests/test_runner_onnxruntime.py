# SPDX-License-Identifier: Apache-2.0
"""The runner of onnxruntime without Python (devices/runner), built for this machine from the installed wheel.

The very source that runs on the emulated ARM64 and that a phone would get. The library is the same, so the numbers are
those of the Python session, bit for bit, in every form and setting.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import artifacts
import runners
from dlqat import artifact as folders
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure, Rewindable, Setting
from dlqat.devices.process import child
from dlqat.devices.process.child import ChildSession, Limits, Worker
from dlqat.devices.process.wire import Message

HOST = DEVICES["host-ort"]
FORMS = ("qdq", "ort", "web")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runner-ort")
    return {form: folders.find(artifacts.export(folder / form, form, "llama-tied")).program for form in FORMS}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runners.onnxruntime(tmp_path_factory.mktemp("built")) / "dlqat_runner"


@pytest.fixture
def worker(built: Path) -> Generator[Worker]:
    yield from runners.serving(built)


def ask_to_open(worker: Worker, program: Path) -> Message:
    """The first message, by hand: a ChildSession would end the worker with the refusal."""
    setting = child.setting_fields(Setting())
    return worker.call(Message({"op": "open", "program": str(program), "setting": setting}), 60)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_numbers(worker: Worker, programs: dict[str, Path], form: str) -> None:
    """Prefill, decode, a long prefill, rewind, reset, and which kernels ran: equal in each setting."""
    program = programs[form]
    long = [int(i) for i in np.random.default_rng(0).integers(3, 150, 80)]
    for setting in HOST.settings(program, 1):
        here, there = HOST.open(program, setting), ChildSession(worker, program, setting, Limits())
        assert isinstance(here, Rewindable)
        for step in ([5, 6, 7, 8], [9], long):
            assert np.array_equal(here.logits(step), there.logits(step)), setting
        assert (there.timings.prefill_tokens, there.timings.decode_tokens) == (84, 1)
        for session in (here, there):
            session.truncate(2)
        assert np.array_equal(here.logits([11]), there.logits([11]))
        for session in (here, there):
            session.reset()
        assert np.array_equal(here.logits([5, 6]), there.logits([5, 6]))
        here_facts, there_facts = dict(here.facts()), dict(there.facts())
        del here_facts["cpu"]
        assert there_facts == here_facts


@pytest.mark.parametrize("setting", [Setting("float"), Setting("int8"), Setting("float", optimize=False)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_small_programs(worker: Worker, programs: dict[str, Path], form: str, setting: Setting) -> None:
    runners.same_linear(worker, HOST, programs[form], setting)


def test_refusals(worker: Worker, programs: dict[str, Path], tmp_path: Path) -> None:
    """A wrong request is one line, and the runner goes on."""
    tokens = {"token_ids": np.zeros(1, np.int64)}
    for header in ({"op": "logits"}, {"op": "reset"}, {"op": "facts"}):
        with pytest.raises(DeviceFailure, match="^no program is open$"):
            worker.call(Message(header, tokens), 60)
    session: Any = ChildSession(worker, programs["ort"], Setting(), Limits())
    for header, says in (({"op": "dance"}, "does not know dance"), ({"op": "truncate"}, "a message without length")):
        with pytest.raises(DeviceFailure, match=says):
            worker.call(Message(header), 60)
    for token in (10**6, -1):
        with pytest.raises(DeviceFailure, match=f"^token {token} is not in the vocabulary of 160$"):
            session.logits([token])
    before = session.logits([1]), session.logits([2])
    with pytest.raises(DeviceFailure, match="onnxruntime does not (load|run) it: "):
        child.evaluate(worker, programs["ort"].read_bytes(), [{}], Setting(), Limits())
    session.truncate(1)
    assert np.array_equal(session.logits([2]), before[1])  # its cache is as it was
    with pytest.raises(DeviceFailure, match="^there is no file "):
        ask_to_open(worker, tmp_path / "none.onnx")
    copy = tmp_path / 'a "b" \\ ü'  # names travel as JSON
    shutil.copytree(programs["ort"].parent, copy)
    assert ChildSession(worker, copy / "model.onnx", Setting(), Limits()).logits([1, 2]).shape == (2, 160)


@pytest.mark.parametrize("form", FORMS)
def test_truncated_programs(worker: Worker, programs: dict[str, Path], tmp_path: Path, form: str) -> None:
    """Cut anywhere, the graph is refused in a line, and so is a graph whose weights are cut."""
    shutil.copytree(programs[form].parent, tmp_path, dirs_exist_ok=True)
    program, content = tmp_path / "model.onnx", programs[form].read_bytes()
    for length in (0, 1, 7, 100, *range(1000, len(content) - 1, len(content) // 20)):
        program.write_bytes(content[:length])
        with pytest.raises(
            DeviceFailure, match="is no ONNX model|onnxruntime does not load it|no output logits"
        ) as told:
            ask_to_open(worker, program)
        assert "\n" not in str(told.value)
    program.write_bytes(content)
    (data,) = tmp_path.glob("*data*")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(DeviceFailure, match="onnxruntime does not load it"):
        ask_to_open(worker, program)
    assert worker.alive


def test_not_a_number(worker: Worker, programs: dict[str, Path], tmp_path: Path) -> None:
    """NaN comes back as NaN: the rungs say so, as of every device."""
    model = onnx.load(str(programs["qdq"]))
    norms = [t for t in model.graph.initializer if "norm" in t.name]
    assert norms
    for tensor in norms:
        values = np.full_like(onnx.numpy_helper.to_array(tensor), np.nan)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    session = ChildSession(worker, tmp_path / "nan.onnx", Setting(), Limits())
    assert np.isnan(session.logits([1, 2])).all()


def test_no_library(built: Path, tmp_path: Path) -> None:
    """Without onnxruntime beside it, it ends at once with a sentence; bytes that are no message end it, too."""
    shutil.copy(built, tmp_path / "dlqat_runner")
    for command, says in ((tmp_path / "dlqat_runner", b"libonnxruntime.so"), (built, b"not a message of dlqat")):
        done = subprocess.run(
            [str(command)], input=b"GET / HTTP/1.1\r\n\r\n", capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert says in done.stderr
