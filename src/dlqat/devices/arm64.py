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
FOLDERS = {"onnx": "arm64", "executorch": "arm64-executorch"}
"""Format -> the set-up that has its runtime."""
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
        where = setup.home() / FOLDERS[self.format]
        if not (where / "ready").is_file() or not (setup.home() / "arm64" / "ready").is_file():
            return f"no emulated ARM64 in {where}; dlqat-devices --set-up {SCRIPTS[self.format]} (Debian or Ubuntu)"
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
        return Worker(self.name, [*emulator(), *COMMANDS[self.format]()], environment())


def emulator() -> list[str]:
    """What runs a program of ARM64 Linux."""
    home = setup.home() / "arm64"
    host = home / "host" / "usr" / "bin" / "qemu-aarch64-static"
    return [str(host), "-L", str(home / "root"), "-cpu", CPU]


def python_worker() -> list[str]:
    """onnxruntime: the worker of every device, in the emulated Python."""
    python = setup.home() / "arm64" / "root" / "usr" / "bin" / "python3.11"
    return [str(python), "-m", "dlqat.devices.worker", "dlqat.devices.host_ort:HostOrt"]


def runner() -> list[str]:
    """ExecuTorch: a runner without Python (runner/executorch.cpp), because its bindings for Python need all of torch."""
    return [str(setup.home() / "arm64-executorch" / "runner" / "dlqat_runner")]


COMMANDS = {"onnx": python_worker, "executorch": runner}


def environment() -> dict[str, str]:
    """The emulated Python's packages and ours; nothing of the host's Python."""
    package, home = Path(dlqat.__file__).resolve().parents[1], setup.home() / "arm64"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))}
    cache = str(home / "pycache")  # compiling is what an emulated import waits for
    path = os.pathsep.join([str(home / "site"), str(package)])
    return {**kept, "PYTHONPATH": path, "PYTHONNOUSERSITE": "1", "PYTHONPYCACHEPREFIX": cache}
