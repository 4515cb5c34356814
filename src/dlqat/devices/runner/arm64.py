# SPDX-License-Identifier: Apache-2.0
"""An ARM64 CPU under qemu-user: the real aarch64 kernels, on an emulated cortex-a76, in the runners that phones get.

Emulation, always labelled: no statement about a phone's speed, memory, NPU or Android's own libraries. What
it shows is whether the kernels that ship for ARM64 compute our integers right, KleidiAI's among them. At
accuracy_level 4 onnxruntime multiplies with those there, and they round activations in another way than on
x86. So it has one setting more, with KleidiAI switched off. In ExecuTorch XNNPACK hands our linears to KleidiAI, which
has other kernels for CPUs with i8mm (most phones since 2022): a second setting emulates such a CPU.
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

from dlqat.devices import executorch_options, machine, ort_options, setup
from dlqat.devices.device import Session, Setting
from dlqat.devices.host.ort import ort_settings
from dlqat.devices.process import child
from dlqat.devices.process.child import ChildSession, Limits, Worker

CPU = "cortex-a76"
WITH_I8MM = ("cpu", "max,sme=off")
"""A setting's option: qemu's largest CPU. Without SME, whose emulation or kernels gave wrong products (qemu 7.2)."""
LIMITS = Limits(load=600.0, call=600.0, token=30.0)
"""A hundred to a thousand times slower than native code (measured per kernel)."""
FOLDERS = {"onnx": "arm64", "executorch": "arm64-executorch"}
"""Format -> the set-up that has its runtime."""
SCRIPTS = {"onnx": "qemu", "executorch": "qemu-executorch"}


@dataclass(eq=False)
class Emulated:
    """The runtime of one format, out of its aarch64 wheel, behind its runner (runner/*.cpp)."""

    name: str
    format: str
    own_process: bool = True
    _evaluators: dict[str, Worker] = field(default_factory=dict[str, Worker], init=False, repr=False)

    @property
    def formats(self) -> tuple[str, ...]:
        return (self.format,)

    def available(self) -> str | None:
        where = setup.home() / FOLDERS[self.format]
        wanted = (where / "ready", self._runner(), setup.home() / "arm64" / "ready")
        if not all(path.is_file() for path in wanted):
            return (
                f"no emulated ARM64 in {where}, or not wholly; dlqat-devices --set-up {SCRIPTS[self.format]} (Debian)"
            )
        if self.format == "onnx" and importlib.util.find_spec("onnx") is None:
            return "onnx not installed; pip install 'dlqat[onnx]'"
        return None

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        if self.format == "onnx":
            return ort_settings(program, 1, arm=True)
        return Setting("int8", True, 1), Setting("int8", True, 1, options=(WITH_I8MM,))

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program
        return setting.under(ort_options.OF_THE_SESSION if self.format == "onnx" else executorch_options.RUNNER)

    def open(self, program: Path, setting: Setting) -> Session:
        said = f"qemu-user -cpu {cpu(setting)}; its /proc/cpuinfo is a file of ours"
        told = {"emulation": said, "runner": machine.build(self._runner().parent.iterdir())}
        return ChildSession(self._worker(setting), program.resolve(), setting, LIMITS, told)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        found = self._evaluators.get(cpu(setting))
        if found is None or not found.alive:
            found = self._evaluators[cpu(setting)] = self._worker(setting)
        return child.evaluate(found, program, batches, setting, LIMITS)

    def _worker(self, setting: Setting) -> Worker:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LD_")}  # the host's libraries
        return Worker(self.name, [*emulator(cpu(setting)), str(self._runner())], environment)

    def _runner(self) -> Path:
        return setup.home() / FOLDERS[self.format] / "runner" / "dlqat_runner"


def cpu(setting: Setting) -> str:
    """What qemu calls the CPU."""
    return dict(setting.options).get(WITH_I8MM[0], CPU)


def emulator(kind: str, root: Path | None = None) -> list[str]:
    """What runs a program of ARM64 Linux, whose libraries are in `root`."""
    home = setup.home() / "arm64"
    host = home / "host" / "usr" / "bin" / "qemu-aarch64-static"
    return [str(host), "-L", str(root or home / "root"), "-cpu", kind]
