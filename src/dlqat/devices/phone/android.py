# SPDX-License-Identifier: Apache-2.0
"""A phone behind adb: check it, push runner and program, and talk to the runner through `adb shell`.

The runner is a program for the phone that speaks wire.py on stdin and stdout, as worker.py does; an environment
variable per runtime names the file or the folder that holds it (the program in a folder is called `dlqat_runner`).
Every command is one that a person can type, and `commands` gives them. Each has a time limit; what was pushed stays in
/data/local/tmp/dlqat for the next run, with the digest of its bytes beside it.

The road is tested against a real adb client and server with a test daemon (tests/adbd.py), the runners of this folder
(runner/*.cpp) on it and on emulated ARM64. On hardware it is not verified.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat import atomic
from dlqat.devices import executorch_options, machine, ort_options
from dlqat.devices.device import DeviceFailure, Session, Setting
from dlqat.devices.host.ort import ort_settings
from dlqat.devices.ort_spec import spec
from dlqat.devices.phone import adb
from dlqat.devices.process import child
from dlqat.devices.process.child import ChildSession, Limits, Worker

HOME = "/data/local/tmp/dlqat"
RUNNER = {"onnx": "DLQAT_ANDROID_RUNNER", "executorch": "DLQAT_ANDROID_EXECUTORCH_RUNNER"}
"""Format -> the variable that names the runner."""
PHONE = {"phone": "ro.product.model", "abi": "ro.product.cpu.abi", "build": "ro.build.fingerprint"}
"""Fact -> the phone's property."""
LIMITS = Limits(load=300.0, call=120.0, token=5.0)
PUSH_BYTES_PER_SECOND = 1e6
"""The slowest USB that we wait for."""
SPARE = 64 << 20
"""Bytes that stay free on the phone."""


@dataclass(eq=False)
class Android:
    """The runtime of one format on the one phone that adb sees, or on $ANDROID_SERIAL."""

    name: str
    format: str
    own_process: bool = True
    _evaluator: Worker | None = field(default=None, init=False, repr=False)

    @property
    def formats(self) -> tuple[str, ...]:
        return (self.format,)

    def available(self) -> str | None:
        variable, named = RUNNER[self.format], self._runner()
        if adb.client() is not None and not named.exists():
            return f"no runner for the phone; name one in {variable} (docs/devices.md says what it must do)"
        if named.is_dir() and not (named / "dlqat_runner").is_file():
            return f"{variable} names {named}, a folder without a dlqat_runner"
        return adb.fault()

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        if self.format == "onnx":
            return ort_settings(program, threads, arm=True)
        return (Setting("int8", True, threads),)  # XNNPACK rounds by itself: ExecuTorch has no other setting

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program
        return setting.under(ort_options.OF_THE_SESSION if self.format == "onnx" else executorch_options.RUNNER)

    def open(self, program: Path, setting: Setting) -> Session:
        return _Session(self._worker(self._files(program)), program, setting, machine.build(self._runner_places()))

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        if self._evaluator is None or not self._evaluator.alive:
            self._evaluator = self._worker([])
        return child.evaluate(self._evaluator, program, batches, setting, LIMITS)

    def commands(self, program: Path) -> list[str]:
        """What `open` runs, for a person to type."""
        places = {**self._runner_places(), **{f: _place(f) for f in self._files(program)}}
        pushed = [shlex.join(["adb", *words]) for file, place in places.items() for words in _push(file, place)]
        return [
            f"adb shell getprop ro.product.cpu.abi   # {' or '.join(adb.ABIS)}",
            f"adb shell df -k {HOME}",
            *pushed,
            f"adb shell -T {shlex.quote(self._start())}",
        ]

    def _files(self, program: Path) -> list[Path]:
        """The program with what stands beside it."""
        beside = spec(program)["external"] if self.format == "onnx" else []
        return [program.parent / name for name in (program.name, *beside)]

    def _runner(self) -> Path:
        return Path(os.environ.get(RUNNER[self.format], RUNNER[self.format]))

    def _runner_places(self) -> dict[Path, str]:
        """Every file of the runner, and where it lies on the phone."""
        named, folder = self._runner(), f"{HOME}/runner-{self.format}"
        if not named.is_dir():
            return {named: f"{folder}/dlqat_runner"}
        return {p: f"{folder}/{p.name}" for p in sorted(named.rglob("*")) if p.is_file()}

    def _start(self) -> str:
        return f"cd {HOME}/runner-{self.format} && LD_LIBRARY_PATH=. exec ./dlqat_runner"

    def _worker(self, files: Sequence[Path]) -> Worker:
        phone = adb.serial()
        places = {**self._runner_places(), **{f: _place(f) for f in files}}
        missing = {file: place for file, place in places.items() if not _there(file, place)}
        free = adb.free_bytes(HOME)
        if missing and (need := sum(f.stat().st_size for f in missing) + SPARE) > free:
            raise DeviceFailure(f"{phone} has {free / 1e6:.0f} MB free in {HOME}, and {need / 1e6:.0f} MB are needed")
        for file, place in missing.items():
            seconds = adb.SHORT + file.stat().st_size / PUSH_BYTES_PER_SECOND
            try:
                for words in _push(file, place):
                    adb.run([*adb.at(phone), *words], seconds)
            except DeviceFailure:
                with contextlib.suppress(DeviceFailure):  # the phone may be gone
                    adb.run([*adb.at(phone), "shell", f"rm -f {shlex.quote(place)}.part"])
                raise
        return Worker(self.name, [*adb.at(phone), "shell", "-T", self._start()])


class _Session(ChildSession):
    """The runner knows the program under its place on the phone."""

    def __init__(self, worker: Worker, program: Path, setting: Setting, runner: str) -> None:
        try:
            told = {name: adb.shell(f"getprop {prop}").strip() for name, prop in PHONE.items()}
        except DeviceFailure:
            worker.close()
            raise
        place = f"../{_place(program).removeprefix(HOME)[1:]}"  # the runner starts in a folder of HOME
        super().__init__(worker, place, setting, LIMITS, {**told, "runner": runner})


def _place(file: Path) -> str:
    """Where a file of a program lies on the phone: in a folder for its folder here."""
    return f"{HOME}/{zlib.crc32(str(file.resolve().parent).encode()):08x}/{file.name}"


def _push(file: Path, place: str) -> list[list[str]]:
    """Push beside, then rename: a push that was cut off leaves nothing that looks whole. Then note the digest."""
    digest = atomic.sha256(file) if file.is_file() else "SHA256"
    whole, part, noted = (shlex.quote(f"{place}{end}") for end in ("", ".part", ".sha256"))
    done = f"mv {part} {whole} && chmod 755 {whole} && echo {digest} > {noted}"
    return [["shell", f"mkdir -p {place.rpartition('/')[0]}"], ["push", str(file), f"{place}.part"], ["shell", done]]


def _there(file: Path, place: str) -> bool:
    """Whether the phone has these bytes (by the digest that was noted after a whole push)."""
    return adb.shell(f"cat {shlex.quote(place)}.sha256 2>/dev/null || true").strip() == atomic.sha256(file)
