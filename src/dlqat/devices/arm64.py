# SPDX-License-Identifier: Apache-2.0
"""onnxruntime for ARM64 under qemu-user: the real aarch64 kernels, on an emulated cortex-a76.

Emulation, always labelled: no statement about a phone's speed, memory, NPU or Android's own libraries. What
it shows is whether the kernels that ship for ARM64 compute our integers right, KleidiAI's among them: at
accuracy_level 4 onnxruntime multiplies with those there, and they round activations in another way than on
x86. So there is one setting more, with KleidiAI switched off.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
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


class EmulatedOrt:
    """onnxruntime's aarch64 wheel under qemu-user."""

    name = "qemu-arm64-ort"
    formats = ("onnx",)
    own_process = True

    def __init__(self) -> None:
        self._evaluator: Worker | None = None

    def available(self) -> str | None:
        if not (setup.home() / "arm64" / "ready").is_file():
            return f"no emulated ARM64 in {setup.home() / 'arm64'}; dlqat-devices --set-up qemu (Debian or Ubuntu)"
        if importlib.util.find_spec("onnx") is None:
            return "onnx not installed; pip install 'dlqat[onnx]'"
        return None

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        return ort_settings(program, 1, arm=True)

    def open(self, program: Path, setting: Setting) -> Session:
        return ChildSession(self._worker(), program.resolve(), setting, LIMITS, {"emulation": EMULATION})

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        if self._evaluator is None or not self._evaluator.alive:
            self._evaluator = self._worker()
        return child.evaluate(self._evaluator, program, batches, setting, LIMITS)

    def _worker(self) -> Worker:
        return Worker(
            self.name, [*command(), "-m", "dlqat.devices.worker", "dlqat.devices.host_ort:HostOrt"], environment()
        )


def command() -> list[str]:
    """The emulated Python."""
    home = setup.home() / "arm64"
    host = home / "host" / "usr" / "bin" / "qemu-aarch64-static"
    return [str(host), "-L", str(home / "root"), "-cpu", CPU, str(home / "root" / "usr" / "bin" / "python3.11")]


def environment() -> dict[str, str]:
    """Its packages and ours; nothing of the host's Python."""
    package = Path(dlqat.__file__).resolve().parents[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))}
    path = os.pathsep.join([str(setup.home() / "arm64" / "site"), str(package)])
    return {**kept, "PYTHONPATH": path, "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
