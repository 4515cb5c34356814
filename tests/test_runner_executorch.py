# SPDX-License-Identifier: Apache-2.0
"""The runner without Python (devices/runner), built for this machine from the installed wheel of ExecuTorch.

The very source that runs on the emulated ARM64 and that a phone would get: the numbers of the Python session, its
refusals, and a clear end for what is no program.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import artifacts
import runners
from dlqat import artifact as folders
from dlqat.devices import executorch_options
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure, Rewindable, Setting
from dlqat.devices.process import child
from dlqat.devices.process.child import ChildSession, Limits, Worker
from dlqat.devices.process.wire import Message

SETTING = Setting("int8")
HOST = DEVICES["host-executorch"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.find(artifacts.export(tmp_path_factory.mktemp("runner"), "xnnpack", "llama-tied")).program


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runners.executorch(tmp_path_factory.mktemp("built")) / "dlqat_runner"


@pytest.fixture
def worker(built: Path) -> Generator[Worker]:
    yield from runners.serving(built)


def alike(a: Any, b: Any) -> bool:
    """Equal but for the order of additions in attention's sgemm (2e-7 measured), and the int8 roundings it may flip."""
    gap = np.abs(a - b)
    return bool(a.shape == b.shape and np.median(gap) < 1e-6 and gap.max() < 0.1)


def test_the_same_numbers(worker: Worker, exported: Path) -> None:
    """Those of the Python session of the same library: prefill, decode, rewind, reset."""
    here, there = HOST.open(exported, SETTING), ChildSession(worker, exported, SETTING, Limits())
    assert isinstance(here, Rewindable)
    for step in ([5, 6, 7, 8], [9]):
        assert alike(here.logits(step), there.logits(step))
    for session in (here, there):
        session.truncate(2)
    assert alike(here.logits([11]), there.logits([11]))
    for session in (here, there):
        session.reset()
    long = [int(i) for i in np.random.default_rng(0).integers(3, 150, 100)]
    assert alike(here.logits(long), there.logits(long))
    assert there.timings.prefill_tokens == 104
    same = ("machine", "system", "runtime", "method", "eos", "threads", "cpu_features")
    assert {k: there.facts()[k] for k in same} == {k: here.facts()[k] for k in same}


def test_what_apps_generate_with(worker: Worker, exported: Path) -> None:
    """`forward` gives the last row only."""
    setting = Setting("int8", generate=True)
    here, there = HOST.open(exported, setting), ChildSession(worker, exported, setting, Limits())
    assert alike(here.logits([5, 6, 7]), there.logits([5, 6, 7]))
    assert there.facts()["method"] == "forward"


@pytest.mark.parametrize("options", executorch_options.RUNNER, ids=str)
def test_options_of_apps_builds(built: Path, worker: Worker, exported: Path, options: dict[str, str]) -> None:
    """Weights cache, workspaces, the file mapped or read: the same bits."""
    setting = Setting("int8", generate=True)
    (condition,) = setting.under([options])
    plain = ChildSession(worker, exported, setting, Limits())
    expected = [plain.logits(ids) for ids in ([5, 6, 7], [8])]
    with contextlib.closing(ChildSession(Worker("runner", [str(built)]), exported, condition, Limits())) as session:
        assert all(np.array_equal(a, session.logits(ids)) for a, ids in zip(expected, ([5, 6, 7], [8]), strict=True))


def test_small_programs(worker: Worker, exported: Path) -> None:
    runners.same_linear(worker, HOST, exported, SETTING)
    with pytest.raises(DeviceFailure, match="executorch does not load it"):
        child.evaluate(worker, b"no program" * 1000, [{}], SETTING, Limits())
    assert worker.alive


def test_refusals(worker: Worker, exported: Path, tmp_path: Path) -> None:
    """A wrong request is one line, and the runner goes on."""
    with pytest.raises(DeviceFailure, match="no program is open"):
        worker.call(Message({"op": "logits"}, {"token_ids": np.zeros(1, np.int64)}), 60)
    session: Any = ChildSession(worker, exported, SETTING, Limits())
    for header, says in (({"op": "dance"}, "does not know dance"), ({"op": "truncate"}, "a message without length")):
        with pytest.raises(DeviceFailure, match=says):
            worker.call(Message(header), 60)
    for token in (10**6, -1):
        with pytest.raises(DeviceFailure, match=f"^token {token} is not in the vocabulary of 160$"):
            session.logits([token])
    with pytest.raises(DeviceFailure, match="129 tokens are more than its context of 128"):
        session.logits([1] * 129)
    assert session.logits([1]).shape == (1, 160)
    copy = tmp_path / 'a "b" \\ ü.pte'  # names travel as JSON
    shutil.copyfile(exported, copy)
    session = ChildSession(worker, copy, SETTING, Limits())
    assert session.logits([1, 2]).shape == (2, 160)
    (tmp_path / "cut.pte").write_bytes(exported.read_bytes()[:3000])
    with pytest.raises(DeviceFailure, match="executorch does not load"):
        ChildSession(worker, tmp_path / "cut.pte", SETTING, Limits())


def test_no_message(built: Path) -> None:
    """Bytes that are no message end it at once, with a sentence on stderr."""
    done = subprocess.run([str(built)], input=b"GET / HTTP/1.1\r\n\r\n", capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"not a message of dlqat" in done.stderr
