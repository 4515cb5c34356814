# SPDX-License-Identifier: Apache-2.0
"""A device of this machine in an ARM64 Python under qemu-user: the real aarch64 kernels, on an emulated cortex-a76.

Emulation, always labelled: no statement about a phone's speed, memory, NPU or Android's own libraries. What
it shows is whether the kernels that ship for ARM64 compute our integers right, KleidiAI's among them. At
accuracy_level 4 onnxruntime multiplies with those there, and they round activations in another way than on
x86. So it has one setting more, with KleidiAI switched off.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dlqat
from dlqat.devices import child, setup
from dlqat.devices.child import ChildSession, Limits, Worker
from dlqat.devices.device import Session, Setting
from dlqat.devices.host_ort import ort_settings

CPU = "cortex-a76"
EMULATION = f"qemu-user -cpu {CPU}; its /proc/cpuinfo is a file of ours"
LIMITS = Limits(load=600.0, call=600.0, token=30.0)
"""A hundred to a thousand times slower than native code (measured per kernel)."""
PROGRAM = {"onnx": "dlqat.devices.host_ort:HostOrt", "executorch": "dlqat.devices.host_executorch:HostExecutorch"}
"""Format -> what the emulated worker serves."""
FOLDERS = {"onnx": ("arm64",), "executorch": ("arm64-executorch", "arm64")}
"""Format -> what `dlqat-devices --set-up` must have made, the one with the runtime first."""
SCRIPTS = {"onnx": "qemu", "executorch": "qemu-executorch"}


@dataclass(eq=False)
class Emulated:
    """The runtime of one format, out of its aarch64 wheel, under qemu-user."""

    name: str
    format: str
    own_process: bool = True
    _evaluator: Worker | None = field(default=None, init=False, repr=False)

    @property
    def formats(self) -> tuple[str, ...]:
        return (self.format,)

    def available(self) -> str | None:
        for folder in FOLDERS[self.format]:
            if not (setup.home() / folder / "ready").is_file():
                where = setup.home() / folder
                return f"nothing in {where}; dlqat-devices --set-up {SCRIPTS[self.format]} (Debian or Ubuntu)"
        if self.format == "onnx" and importlib.util.find_spec("onnx") is None:
            return "onnx not installed; pip install 'dlqat[onnx]'"
        return None

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        return ort_settings(program, 1, arm=True) if self.format == "onnx" else (Setting("int8", True, 1),)

    def open(self, program: Path, setting: Setting) -> Session:
        return ChildSession(self._worker(), program.resolve(), setting, LIMITS, {"emulation": EMULATION})

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        if self._evaluator is None or not self._evaluator.alive:
            self._evaluator = self._worker()
        return child.evaluate(self._evaluator, program, batches, setting, LIMITS)

    def _worker(self) -> Worker:
        words = [*command(), "-m", "dlqat.devices.worker", PROGRAM[self.format]]
        return Worker(self.name, words, environment(FOLDERS[self.format]))


def command() -> list[str]:
    """The emulated Python."""
    home = setup.home() / "arm64"
    host = home / "host" / "usr" / "bin" / "qemu-aarch64-static"
    return [str(host), "-L", str(home / "root"), "-cpu", CPU, str(home / "root" / "usr" / "bin" / "python3.11")]


def environment(folders: Sequence[str]) -> dict[str, str]:
    """The packages of these set-ups and ours; nothing of the host's Python."""
    package = Path(dlqat.__file__).resolve().parents[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))}
    path = os.pathsep.join([*(str(setup.home() / f / "site") for f in folders), str(package)])
    cache = str(setup.home() / folders[-1] / "pycache")  # compiling is what an emulated import waits for
    return {**kept, "PYTHONPATH": path, "PYTHONNOUSERSITE": "1", "PYTHONPYCACHEPREFIX": cache}
