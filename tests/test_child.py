# SPDX-License-Identifier: Apache-2.0
"""Runtimes in child processes: the same numbers, and a clear end for every way in which one can go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import artifacts
from dlqat import artifact as folders
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure, Rewindable, Setting
from dlqat.devices.process import child, process_tree, wire
from dlqat.devices.process.child import ChildSession, Limits, Worker
from dlqat.devices.process.isolated import Isolated, isolated
from dlqat.devices.process.wire import Garbled, Message

SETTING = Setting()
HOST = DEVICES["host-ort"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.find(artifacts.export(tmp_path_factory.mktemp("child"), "ort", "llama-tied")).program


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether no process of this group is left soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return True
        time.sleep(0.02)
    return False


def worker(program: str, *arguments: str) -> Worker:
    """A worker that runs a small Python program. `answer(header)` in it sends a message without arrays."""
    head = (
        "import sys, os, time, signal, json, struct, subprocess\n"
        "def answer(h):\n"
        "    t = json.dumps({**h, 'arrays': []}).encode()\n"
        "    sys.stdout.buffer.write(struct.pack('<4sIQ', b'DLQ1', len(t), 0) + t); sys.stdout.flush()\n"
    )
    return Worker("toy", [sys.executable, "-c", head + program, *arguments])


# Messages


def test_messages_come_back() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([], np.int64),
        "c": np.array(7, np.int8),
        "d": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    }
    frame = wire.encode(Message({"op": "x", "text": "ü"}, arrays))
    at = 0

    def read(length: int) -> bytes:
        nonlocal at
        at += length
        return frame[at - length : at]

    found = wire.decode(read)
    assert at == len(frame)
    assert found.header == {"op": "x", "text": "ü"}
    for name, value in arrays.items():
        assert found.arrays[name].dtype == value.dtype
        assert np.array_equal(found.arrays[name], value)
    with pytest.raises(Garbled, match="do not travel"):
        wire.encode(Message({}, {"x": np.zeros(2, np.complex64)}))


def test_garbled_messages() -> None:
    """What another's runner may send: arrays that are not in the payload, a type or shape that is none."""
    for shapes in (
        [{"name": "a", "dtype": "float32", "shape": [3]}],
        [{"name": "a", "dtype": "complicated", "shape": [1]}],
        [{"name": "a", "dtype": "float32"}],
        [7],
        7,
    ):
        with pytest.raises(Garbled):
            wire.with_payload({"arrays": shapes}, b"1234")


# The same numbers


def test_a_session_in_a_child(exported: Path) -> None:
    """Bit-equal to the same runtime in this process: prefill, decode, rewind, reset; then the process is gone."""
    setting = HOST.settings(exported, 1)[0]
    own, other = HOST.open(exported, setting), Isolated(HOST).open(exported, setting)
    assert isinstance(own, Rewindable)
    assert isinstance(other, Rewindable)
    for session in (own, other):
        session.logits([5, 6, 7])
        session.truncate(2)
    assert np.array_equal(own.logits([9]), other.logits([9]))
    for session in (own, other):
        session.reset()
    assert np.array_equal(own.logits([1, 2]), other.logits([1, 2]))
    assert other.timings.prefill_tokens == 5
    assert other.facts()["runtime"] == own.facts()["runtime"]
    with pytest.raises(DeviceFailure, match="not in the vocabulary"):
        other.logits([10**6])  # a failure of a call is no failure of the worker
    assert other.logits([3]).shape[0] == 1
    pid = other._worker.pid  # pyright: ignore[reportAttributeAccessIssue]
    other.close()
    assert gone(pid)


def test_small_programs_in_a_child(exported: Path) -> None:
    from dlqat.runtime_tests.readers import read

    weight = next(w for w in read(exported).weights if w.kind == "matmul")
    program, setting = weight.program(), HOST.settings(exported, 1)[0]
    width = weight.load().codes.shape[1]
    batches = [
        {weight.input: np.random.default_rng(i).normal(size=(n, width)).astype(np.float32)} for i, n in ((0, 3), (1, 1))
    ]
    device = Isolated(HOST)
    for mine, its in zip(
        HOST.evaluate(program, batches, setting), device.evaluate(program, batches, setting), strict=True
    ):
        assert np.array_equal(mine, its)
    with pytest.raises(DeviceFailure):
        device.evaluate(b"no program", batches, setting)
    device.close()


def test_devices_with_processes_of_their_own_stay_as_they_are() -> None:
    assert isinstance(isolated(HOST), Isolated)
    assert all(isolated(d) is d for d in DEVICES.values() if d.name != "host-ort" and getattr(d, "own_process", False))


# What can go wrong


def test_a_hang_is_stopped(exported: Path) -> None:
    """A time-out ends the worker and all that it started, at once, and names the call."""
    toy = worker("subprocess.Popen(['sleep', '1000']); time.sleep(1000)")
    start = time.monotonic()
    with pytest.raises(DeviceFailure, match=r"toy did not answer within 1 s \(facts\); it was stopped"):
        toy.call(Message({"op": "facts"}), 1.0)
    assert time.monotonic() - start < 60
    assert gone(toy.pid)
    with pytest.raises(DeviceFailure, match="did not answer"):
        toy.call(Message({"op": "facts"}), 1.0)
    toy.close()


def test_a_runtime_that_hangs(exported: Path) -> None:
    """A real runtime that stops in the middle (SIGSTOP): the call's time limit, then every later call at once."""
    session = ChildSession(Isolated(HOST)._worker(), exported, HOST.settings(exported, 1)[0], Limits(call=1, token=0))
    session.logits([1, 2])
    pid = session._worker.pid
    os.kill(pid, signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(DeviceFailure, match=r"host-ort did not answer within 1 s \(logits\); it was stopped"):
            session.logits([3])
    assert gone(pid)


@pytest.mark.parametrize("end", ["closed", "stopped"])
def test_temporary_files_go(end: str) -> None:
    """A worker has a TMPDIR of its own, which goes with it (a killed browser leaves its profile)."""
    toy = worker(
        "import tempfile; open(os.path.join(tempfile.mkdtemp(), 'x'), 'w').close()\n"
        "answer({'folder': tempfile.gettempdir()}); sys.stdin.buffer.read()"
    )
    folder = Path(toy.call(Message({"op": "facts"}), 60.0).header["folder"])
    assert [p for p in folder.rglob("x") if p.is_file()]
    if end == "stopped":
        with pytest.raises(DeviceFailure, match="did not answer"):
            toy.call(Message({"op": "facts"}), 0.2)
    else:
        toy.close()
    assert not folder.exists()


def test_what_a_killed_driver_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After kill -9 nobody removes a worker's temporary files; the next worker does, and leaves those of others."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, running = (tmp_path / f"{child.PREFIX}{pid}-x" for pid in (ended.pid, os.getppid()))
    for folder in (left, running):
        (folder / "profile").mkdir(parents=True)
    toy = worker("answer({})")
    assert not left.exists()
    assert running.exists()
    toy.close()
    assert list(tmp_path.iterdir()) == [running]


def test_what_left_the_group_is_stopped_too() -> None:
    """Chromium is in a session of its own, and a hung one does not see that its pipe was closed."""
    toy = worker(
        "subprocess.Popen(['sleep', '1000'], start_new_session=True, stdin=-3, stdout=-3); answer({}); time.sleep(1000)"
    )
    toy.call(Message({"op": "facts"}), 60.0)
    (child_pid,) = process_tree.descendants(toy.pid)
    with pytest.raises(DeviceFailure, match="did not answer"):
        toy.call(Message({"op": "facts"}), 0.5)
    assert gone(toy.pid)
    assert gone(child_pid)


def test_a_worker_that_does_not_read(exported: Path) -> None:
    """A message larger than the pipe, to a process that never reads."""
    toy = worker("time.sleep(1000)")
    with pytest.raises(DeviceFailure, match="did not answer"):
        toy.call(Message({"op": "x"}, {"a": np.zeros(1 << 20, np.float32)}), 1.0)
    assert gone(toy.pid)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (
            "print('out of memory', file=sys.stderr); sys.exit(3)",
            r"ended \(exit code 3\) during facts; it said: out of memory",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\) during facts"),
        ("print('Hello from a runtime that prints')", "does not speak our protocol"),
        ("answer({'error': 'no such kernel'}); time.sleep(1000)", "^no such kernel$"),
    ],
)
def test_crashes(program: str, says: str) -> None:
    toy = worker(program)
    with pytest.raises(DeviceFailure, match=says):
        toy.call(Message({"op": "facts"}), 60.0)
    toy.close()
    assert gone(toy.pid)


def test_no_such_program() -> None:
    with pytest.raises(DeviceFailure, match="cannot be started"):
        Worker("toy", ["/no/such/program"])


def test_killed_in_the_middle(exported: Path) -> None:
    """The runtime's process is killed between two calls (out of memory, unplugged): one line, nothing hangs."""
    session: Any = Isolated(HOST).open(exported, HOST.settings(exported, 1)[0])
    session.logits([1, 2])
    os.kill(session._worker.pid, signal.SIGKILL)
    with pytest.raises(DeviceFailure, match=r"host-ort crashed \(SIGKILL\) during logits"):
        session.logits([3])
    session.close()


def test_a_program_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07 truncated")
    with pytest.raises(DeviceFailure, match="no ONNX model"):
        ChildSession(Isolated(HOST)._worker(), tmp_path / "model.onnx", SETTING, Limits())


def test_the_worker_ends_with_its_driver(exported: Path) -> None:
    """kill -9 of the command leaves no runtime behind, busy or not."""
    program = (
        "import sys, time; from pathlib import Path; from dlqat.devices.all import DEVICES\n"
        "from dlqat.devices.process.isolated import Isolated\n"
        f"p = Path({str(exported)!r}); d = DEVICES['host-ort']\n"
        "s = Isolated(d).open(p, d.settings(p, 1)[0]); print(s._worker.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        driver.kill()
    assert gone(pid)


def test_setting_travels() -> None:
    from dlqat.devices.process.worker import setting_of

    setting = Setting("int8", False, 3, options=(("a", "b"),))
    assert setting_of(child.setting_fields(setting)) == setting
