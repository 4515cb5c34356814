# SPDX-License-Identifier: Apache-2.0
"""A phone behind adb: check it, push runner and program, and talk to the runner through `adb shell`.

The runner is a program for the phone that speaks wire.py on stdin and stdout, as worker.py does; $DLQAT_ANDROID_RUNNER
names the file or the folder that holds it (the program in a folder is called `dlqat_runner`). Every command is one
that a person can type, and `commands` gives them. Each has a time limit; what was pushed stays in
/data/local/tmp/dlqat for the next run, with the digest of its bytes beside it.

The road is tested against a real adb client and server with a test daemon (tests/adbd.py). On hardware it is not
verified, and no runner for Android is part of this repository.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat import atomic
from dlqat.devices import child
from dlqat.devices.child import ChildSession, Limits, Worker
from dlqat.devices.device import DeviceFailure, Session, Setting
from dlqat.devices.ort_spec import spec

HOME = "/data/local/tmp/dlqat"
ABIS = ("arm64-v8a", "x86_64")
RUNNER = "DLQAT_ANDROID_RUNNER"
LIMITS = Limits(load=300.0, call=120.0, token=5.0)
SHORT = 30.0
PUSH_BYTES_PER_SECOND = 1e6
"""The slowest USB that we wait for."""
SPARE = 64 << 20
"""Bytes that stay free on the phone."""


class AndroidOrt:
    """onnxruntime on the one phone that adb sees, or on $ANDROID_SERIAL."""

    name = "android-ort"
    formats = ("onnx",)
    own_process = True

    def __init__(self) -> None:
        self._evaluator: Worker | None = None

    def available(self) -> str | None:
        if (adb := _adb()) is None:
            return "no adb; pip install 'dlqat[devices]' or install Android's platform-tools"
        runner = os.environ.get(RUNNER)
        if runner is None or not Path(runner).exists():
            return f"no runner for the phone; name one in {RUNNER} (docs/devices.md says what it must do)"
        try:
            serials = [line.split() for line in _run([adb, "devices"]).splitlines()[1:] if line.strip()]
            ready = [s[0] for s in serials if s[1] == "device"]
            named = os.environ.get("ANDROID_SERIAL")
            if named is not None and named not in ready:
                return f"ANDROID_SERIAL is {named}, and adb sees {', '.join(map(' '.join, serials)) or 'no device'}"
            if named is None and len(ready) != 1:
                return f"adb sees {len(ready)} ready devices; connect one with USB debugging on, or set ANDROID_SERIAL"
            abi = _run([*_at(named or ready[0]), "shell", "getprop ro.product.cpu.abi"]).strip()
        except DeviceFailure as failure:
            return str(failure)
        return None if abi in ABIS else f"the phone's ABI is {abi or 'unknown'}; {' or '.join(ABIS)} is needed"

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        return Setting("float", True, threads), Setting("int8", True, threads)

    def open(self, program: Path, setting: Setting) -> Session:
        return _Session(
            self._worker([program.parent / n for n in (program.name, *spec(program)["external"])]), program, setting
        )

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        if self._evaluator is None or not self._evaluator.alive:
            self._evaluator = self._worker([])
        return child.evaluate(self._evaluator, program, batches, setting, LIMITS)

    def commands(self, program: Path) -> list[str]:
        """What `open` runs, for a person to type."""
        files = [program.parent / n for n in (program.name, *spec(program)["external"])]
        pushed = [shlex.join(["adb", *a]) for f in (*_runner(), *files) for a in _push(f)]
        return [
            f"adb shell getprop ro.product.cpu.abi   # {' or '.join(ABIS)}",
            f"adb shell df -k {HOME}",
            *pushed,
            _start("adb"),
        ]

    def _worker(self, files: Sequence[Path]) -> Worker:
        adb, serial = _adb() or "adb", _serial()
        wanted = [*_runner(), *files]
        missing = [f for f in wanted if not _there(f)]
        free = _free_bytes()
        if missing and (need := sum(f.stat().st_size for f in missing) + SPARE) > free:
            raise DeviceFailure(f"{serial} has {free / 1e6:.0f} MB free in {HOME}, and {need / 1e6:.0f} MB are needed")
        for file in missing:
            seconds = SHORT + file.stat().st_size / PUSH_BYTES_PER_SECOND
            try:
                for arguments in _push(file):
                    _run([*_at(serial), *arguments], seconds)
            except DeviceFailure:
                with contextlib.suppress(DeviceFailure):  # the phone may be gone
                    _run([*_at(serial), "shell", f"rm -f {_place(file)}.part"])
                raise
        return Worker(self.name, [adb, "-s", serial, "shell", "-T", _started()])


class _Session(ChildSession):
    """The runner knows the program under its place on the phone."""

    def __init__(self, worker: Worker, program: Path, setting: Setting) -> None:
        props = {n: _run([*_at(_serial()), "shell", f"getprop ro.product.{n}"]).strip() for n in ("model", "cpu.abi")}
        place = f"../{_place(program).removeprefix(HOME)[1:]}"  # the runner starts in HOME/runner
        super().__init__(worker, place, setting, LIMITS, {"phone": props["model"], "abi": props["cpu.abi"]})


def _runner() -> list[Path]:
    named = Path(os.environ.get(RUNNER, RUNNER))
    return sorted(p for p in named.rglob("*") if p.is_file()) if named.is_dir() else [named]


def _place(file: Path) -> str:
    """Where a file lies on the phone: the runner by name, a program's files in a folder for their folder here."""
    if file in _runner():
        return f"{HOME}/runner/{'dlqat_runner' if Path(os.environ[RUNNER]).is_file() else file.name}"
    return f"{HOME}/{zlib.crc32(str(file.resolve().parent).encode()):08x}/{file.name}"


def _push(file: Path) -> list[list[str]]:
    """Push beside, then rename: a push that was cut off leaves nothing that looks whole. Then note the digest."""
    place = _place(file)
    digest = atomic.sha256(file) if file.is_file() else "SHA256"
    done = f"mv {place}.part {place} && chmod 755 {place} && echo {digest} > {place}.sha256"
    return [["shell", f"mkdir -p {place.rpartition('/')[0]}"], ["push", str(file), f"{place}.part"], ["shell", done]]


def _there(file: Path) -> bool:
    """Whether the phone has these bytes (by the digest that was noted after a whole push)."""
    found = _run([*_at(_serial()), "shell", f"cat {_place(file)}.sha256 2>/dev/null || true"]).strip()
    return found == atomic.sha256(file)


def _started() -> str:
    return f"cd {HOME}/runner && LD_LIBRARY_PATH=. exec ./dlqat_runner"


def _start(adb: str) -> str:
    return f"{adb} shell -T {shlex.quote(_started())}"


def _free_bytes() -> int:
    """Free bytes where we push to (df -k: the fourth column of the last line)."""
    shown = _run([*_at(_serial()), "shell", f"mkdir -p {HOME} && df -k {HOME}"]).split("\n")
    columns = [line.split() for line in shown if line.strip()][-1]
    if len(columns) < 4 or not columns[3].isdigit():
        raise DeviceFailure(f"df on the phone says {' '.join(columns)!r}")
    return int(columns[3]) * 1024


def _serial() -> str:
    if named := os.environ.get("ANDROID_SERIAL"):
        return named
    lines = [line.split() for line in _run([_adb() or "adb", "devices"]).splitlines()[1:] if line.strip()]
    ready = [line[0] for line in lines if line[1] == "device"]
    if len(ready) != 1:
        raise DeviceFailure(f"adb sees {len(ready)} ready devices")
    return ready[0]


def _at(serial: str) -> list[str]:
    return [_adb() or "adb", "-s", serial]


def _adb() -> str | None:
    """adb on PATH, else the one in the wheel of adbutils."""
    if found := shutil.which("adb"):
        return found
    if importlib.util.find_spec("adbutils") is None:
        return None
    import adbutils

    return str(adbutils.adb_path())


def _run(command: Sequence[str], seconds: float = SHORT) -> str:
    """stdout of a command. DeviceFailure if it fails or takes longer."""
    shown = shlex.join(["adb", *command[1:]])[:200]
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise DeviceFailure(f"{shown} did not end within {seconds:.0f} s; it was stopped") from None
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-200:]
        raise DeviceFailure(f"{shown} failed (exit code {done.returncode}): {words}")
    return done.stdout
