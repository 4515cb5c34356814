# SPDX-License-Identifier: Apache-2.0
"""The road over adb: a real adb client and server, and a test daemon that plays the phone (adbd.py).

The daemon's runner is our Python worker, or the runner in C++ that a phone gets, built for this machine: what runs is the
road, not Android. A server that is killed, a phone that is unplugged or does not answer, a full disk: one sentence, and
nothing hangs or stays behind.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adbd
import artifacts
import dlqat
import runners
from dlqat import artifact as folders
from dlqat import fetched
from dlqat.devices.all import DEVICES
from dlqat.devices.device import DeviceFailure
from dlqat.devices.phone import adb, android, by_hand
from dlqat.devices.phone.android import Android
from dlqat.devices.process.child import Limits
from dlqat.runtime_tests.readers import read

pytest.importorskip("adbutils")
ADB = adb.client()
assert ADB is not None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """An adb server of our own: other port, other keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        patch.setenv("DLQAT_DEVICES", str(fetched.home()))  # what is set up stays where it is
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("ANDROID_SERIAL", raising=False)
        subprocess.run([ADB, "start-server"], check=True, capture_output=True, timeout=60)
        yield
        subprocess.run([ADB, "kill-server"], check=False, capture_output=True, timeout=60)


class Phone:
    """A daemon with its root."""

    def __init__(self, root: Path, abi: str = "arm64-v8a", free_kb: int = 10**7, most: int = 1 << 40) -> None:
        tools = root / "system" / "bin"
        tools.mkdir(parents=True)
        shown = f"echo Filesystem 1K-blocks Used Available Use% Mounted; echo /dev/x 1 1 {free_kb} 1% /data"
        props = f'case "$1" in *abi) echo {abi};; *) echo Toy;; esac'
        for name, body in (("getprop", props), ("df", shown)):
            (tools / name).write_text(f"#!/bin/sh\n{body}\n")
            (tools / name).chmod(0o755)
        self.port, self.root = free_port(), root
        command = [sys.executable, adbd.__file__, str(root), str(self.port), str(most)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        subprocess.run([ADB, "connect", f"127.0.0.1:{self.port}"], check=True, capture_output=True, timeout=60)

    def unplug(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.unplug()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        subprocess.run([ADB, "disconnect", f"127.0.0.1:{self.port}"], check=False, capture_output=True, timeout=60)


def ort() -> Android:
    return Android("android-ort", "onnx")


def executorch() -> Android:
    return Android("android-executorch", "executorch")


@pytest.fixture
def phone(server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[..., Phone]]:
    """A factory of phones with the runners named."""
    source = Path(dlqat.__file__).parents[1]
    for form, variable in android.RUNNER.items():
        runner = tmp_path / f"runner-{form}"
        served = {"onnx": "host.ort:HostOrt", "executorch": "host.executorch:HostExecutorch"}[form]
        worker = f"{sys.executable} -m dlqat.devices.process.worker dlqat.devices.{served}"
        runner.write_text(f"#!/bin/sh\nPYTHONPATH={source} exec {worker}\n")
        monkeypatch.setenv(variable, str(runner))
    made: list[Phone] = []

    def make(**options: Any) -> Phone:
        made.append(Phone(tmp_path / f"phone{len(made)}", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.find(artifacts.export(tmp_path_factory.mktemp("android"), "ort", "llama-tied")).program


def test_a_program_on_the_phone(phone: Callable[..., Phone], program: Path) -> None:
    """Pushed once, run there, the numbers of the same runtime here; what is pushed is what is here."""
    one, device = phone(), ort()
    assert device.available() is None
    setting = device.settings(program, 1)[0]
    session: Any = device.open(program, setting)
    here = DEVICES["host-ort"].open(program, setting)
    assert np.array_equal(session.logits([5, 6, 7]), here.logits([5, 6, 7]))
    assert np.array_equal(session.logits([8]), here.logits([8]))
    facts = session.facts()
    assert (facts["phone"], len(facts["runner"])) == ("Toy", 16)
    session.close()
    (pushed,) = (one.root / "data").rglob("model.onnx")
    assert pushed.read_bytes() == program.read_bytes()
    before = pushed.stat().st_mtime_ns
    device.open(program, setting).close()
    assert pushed.stat().st_mtime_ns == before


@pytest.mark.parametrize("form", ["ort", "web"])
def test_the_runner_on_the_phone(
    phone: Callable[..., Phone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The folder with dlqat_runner and its library is pushed; every setting gives this machine's numbers, bit for bit."""
    one, device = phone(), ort()
    monkeypatch.setenv(android.RUNNER["onnx"], str(runners.onnxruntime(tmp_path / "runner")))
    program = folders.find(artifacts.export(tmp_path / "model", form, "llama-tied")).program
    settings = device.settings(program, 1)
    assert {s.activations for s in settings} == {"ort": {"float", "int8"}, "web": {"int8"}}[form]
    for setting in settings:
        session: Any = device.open(program, setting)
        here = DEVICES["host-ort"].open(program, setting)
        for step in ([5, 6, 7], [8]):
            assert np.array_equal(session.logits(step), here.logits(step))
        facts = session.facts()
        assert (facts["phone"], facts["kernels"]) == ("Toy", here.facts()["kernels"])
        session.close()
    pushed = {p.name for p in (one.root / "data").rglob("runner-onnx/*") if p.suffix != ".sha256"}
    assert pushed == {"dlqat_runner", "libonnxruntime.so"}
    weight = next(w for w in read(program).weights if w.kind == "matmul")
    x = np.random.default_rng(0).normal(size=(3, weight.load().codes.shape[1])).astype(np.float32)
    for setting in settings:
        (there,) = device.evaluate(weight.program(), [{weight.input: x}], setting)
        (mine,) = DEVICES["host-ort"].evaluate(weight.program(), [{weight.input: x}], setting)
        assert np.array_equal(there, mine)


def test_a_name_with_spaces(phone: Callable[..., Phone], program: Path, tmp_path: Path) -> None:
    """Whatever the program is called, the phone's shell sees one word."""
    one, device = phone(), ort()
    named = tmp_path / "my model.onnx"
    named.write_bytes(program.read_bytes())
    for beside in program.parent.glob("*_data"):
        (tmp_path / beside.name).write_bytes(beside.read_bytes())
    device.open(named, device.settings(named, 1)[0]).close()
    assert [p.name for p in (one.root / "data").rglob("my model.onnx*")]


def test_unplugged_in_the_middle(phone: Callable[..., Phone], program: Path) -> None:
    one, device = phone(), ort()
    session: Any = device.open(program, device.settings(program, 1)[0])
    session.logits([1, 2])
    one.unplug()
    with pytest.raises(DeviceFailure, match="android-ort (ended|crashed|closed)"):
        session.logits([3])
    session.close()
    assert "adb sees 0 ready devices" in str(device.available())


def test_executorch_on_the_phone(phone: Callable[..., Phone], tmp_path: Path) -> None:
    """The same road for a .pte, with a runner of its own beside the other one's."""
    artifact = artifacts.export(tmp_path / "model", "xnnpack", "llama-tied")
    one, device, program = phone(), executorch(), folders.find(artifact).program
    assert device.available() is None
    (setting,) = device.settings(program, 1)
    session: Any = device.open(program, setting)
    here = DEVICES["host-executorch"].open(program, setting)
    for step in ([5, 6, 7], [8]):
        assert np.array_equal(session.logits(step), here.logits(step))
    assert str(session.facts()["runtime"]).startswith("executorch ")
    session.close()
    assert [p.name for p in (one.root / "data").rglob("runner-executorch/dlqat_runner")]
    shown = device.commands(program)
    assert any(line.startswith("adb push") and "model.pte" in line for line in shown)
    assert "runner-executorch" in shown[-1]


def test_the_adb_server_is_killed(phone: Callable[..., Phone], program: Path) -> None:
    """The pipe to the phone ends with it; the next command starts a server again, which knows of no phone."""
    phone()
    device = ort()
    session: Any = device.open(program, device.settings(program, 1)[0])
    session.logits([1, 2])
    subprocess.run([ADB, "kill-server"], check=True, capture_output=True, timeout=60)
    with pytest.raises(DeviceFailure, match="android-ort (ended|crashed|closed)"):
        session.logits([3])
    with pytest.raises(DeviceFailure, match="android-ort (ended|crashed|closed)"):
        session.logits([4])  # at once, and with the same words
    session.close()
    assert "adb sees 0 ready devices" in str(device.available())
    with pytest.raises(DeviceFailure, match="adb sees 0 ready devices"):
        device.open(program, device.settings(program, 1)[0])


def test_a_phone_that_does_not_answer(
    phone: Callable[..., Phone], program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs (its daemon is stopped, not ended): every call on it ends with its time limit, in the end `adb` too."""
    one, device = phone(), ort()
    session: Any = device.open(program, device.settings(program, 1)[0])
    os.kill(one.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(session, "_limits", Limits(call=1.0, token=0.0))
    with pytest.raises(DeviceFailure, match=r"android-ort did not answer within 1 s \(logits\); it was stopped"):
        session.logits([3])
    monkeypatch.setattr(adb, "SHORT", 1.0)
    with pytest.raises(DeviceFailure, match="did not end within 1 s; it was stopped"):
        device.open(program, device.settings(program, 1)[0])
    os.kill(one.process.pid, signal.SIGCONT)


def test_too_little_space(phone: Callable[..., Phone], program: Path) -> None:
    """Refused before anything is pushed."""
    one, device = phone(free_kb=100), ort()
    with pytest.raises(DeviceFailure, match="MB free in /data/local/tmp/dlqat"):
        device.open(program, device.settings(program, 1)[0])
    assert not list((one.root / "data").rglob("*.part"))


def test_disk_full_while_pushing(phone: Callable[..., Phone], program: Path) -> None:
    """df said there was room, and there was not: adb's own words, and nothing that looks whole stays."""
    one, device = phone(most=2000), ort()
    with pytest.raises(DeviceFailure, match="No space left on device"):
        device.open(program, device.settings(program, 1)[0])
    assert not list((one.root / "data").rglob("model.onnx*"))


def test_another_abi(phone: Callable[..., Phone]) -> None:
    phone(abi="armeabi-v7a")
    assert ort().available() == "the phone's ABI is armeabi-v7a; arm64-v8a or x86_64 is needed"


def test_no_phone_and_no_runner(server: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variable = android.RUNNER["onnx"]
    monkeypatch.delenv(variable, raising=False)
    assert variable in str(ort().available())
    monkeypatch.setenv(variable, str(tmp_path))
    assert "a folder without a dlqat_runner" in str(ort().available())
    (tmp_path / "dlqat_runner").touch()
    assert "adb sees 0 ready devices" in str(ort().available())
    monkeypatch.setenv("ANDROID_SERIAL", "XYZ")
    assert "ANDROID_SERIAL is XYZ" in str(ort().available())


UDEV = "no permissions (missing udev rules? user is in the plugdev group); see [http://developer.android.com/tools]"


@pytest.mark.parametrize(
    ("listed", "named", "says"),
    [
        (
            "A\tunauthorized",
            None,
            r"adb sees 0 ready devices \(A unauthorized\); unlock the phone and allow USB debugging",
        ),
        ("A\toffline", None, r"adb sees 0 ready devices \(A offline\); plug it in again"),
        (
            f"????\t{UDEV}",
            None,
            r"0 ready devices \(\?\?\?\? no permissions\); this user may not open it: add a udev rule",
        ),
        ("A\tunauthorized\nB\toffline", None, r"\(A unauthorized, B offline\); unlock .*; plug it in again"),
        ("A\tdevice\nB\tdevice", None, r"2 ready devices \(A device, B device\); set ANDROID_SERIAL to the one"),
        ("A\tdevice\nB\toffline", "B", r"ANDROID_SERIAL is B, and adb sees A device, B offline; plug it in again"),
        ("A\trecovery", None, r"adb sees 0 ready devices \(A recovery\); connect one with USB debugging on"),
        ("", "B", "ANDROID_SERIAL is B, and adb sees no device$"),
    ],
)
def test_phones_that_are_not_ready_are_named(
    monkeypatch: pytest.MonkeyPatch, listed: str, named: str | None, says: str
) -> None:
    shown = f"* daemon started successfully\nList of devices attached\n{listed}\n\n"
    monkeypatch.setattr(adb, "run", lambda command: shown)
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    if named is not None:
        monkeypatch.setenv("ANDROID_SERIAL", named)
    with pytest.raises(DeviceFailure, match=says):
        adb.serial()


def test_the_one_phone_that_is_ready_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    monkeypatch.setattr(adb, "run", lambda command: f"List of devices attached\nA\t{UDEV}\nB\tdevice\n\n")
    assert adb.serial() == "B"


def printed(folder: Path) -> list[str]:
    """What dlqat-devices --print-commands says."""
    command = [sys.executable, "-m", "dlqat.devices.cli", "--print-commands", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_the_commands_of_an_artifact(phone: Callable[..., Phone], program: Path, tmp_path: Path) -> None:
    """By the artifact's format: adb, and beside it what was not run here."""
    lines, expected = printed(program.parent.parent), ort().commands(program)
    assert lines[1 : 1 + len(expected)] == expected
    assert "AI Hub" in lines[1 + len(expected)] and "not verified" in lines[1 + len(expected)]
    (tmp_path / "package" / "model.mlpackage").mkdir(parents=True)
    lines = printed(tmp_path / "package")
    assert "not verified" in lines[0] and len([x for x in lines if x.startswith("xcrun devicectl")]) == 3
    assert shlex.split(lines[2])[-1] == "Documents/model.mlpackage"


def test_the_folder_for_ai_hub_is_what_its_client_takes(program: Path, tmp_path: Path) -> None:
    """One .onnx and one .data file, nothing else (qai_hub 0.56, client.py), and the program is still the program."""
    made = next(line for line in by_hand.ai_hub(program) if line.startswith("mkdir"))
    made = made.replace("python -c", f"{shlex.quote(sys.executable)} -c", 1)
    subprocess.run(["bash", "-c", made], cwd=tmp_path, check=True, timeout=120)
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == ["model.data", "model.onnx"]
    assert ort_inputs(tmp_path / "hub" / "model.onnx") == ort_inputs(program)


def ort_inputs(path: Path) -> list[str]:
    import onnxruntime

    return [x.name for x in onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()]


def test_the_commands_are_printed(phone: Callable[..., Phone], program: Path) -> None:
    """What is printed names every step; typed, it does the same."""
    shown = ort().commands(program)
    assert any(line.startswith("adb push") and "model.onnx" in line for line in shown)
    assert shown[-1].startswith("adb shell -T ")
