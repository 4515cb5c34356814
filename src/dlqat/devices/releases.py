# SPDX-License-Identifier: Apache-2.0
"""Other versions of a runtime, each a device of its own: host-ort@1.24, host-executorch@1.4, qemu-arm64-executorch@1.2.

An app runs the version that it links, not the one that is installed here. `dlqat-devices --set-up NAME@VERSION` fetches
that version's wheel into $DLQAT_DEVICES/releases; a worker finds it there before this environment's.

ExecuTorch before 1.4 needs a torch of its time. For x86 Linux PyPI has those with CUDA only, gigabytes; for ARM64 it has
small ones. So the oldest versions run under emulation, in an ARM64 Python, with the kernels that phones have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import dlqat
from dlqat import fetched
from dlqat.devices import ort_options, setup
from dlqat.devices.device import Device, Setting
from dlqat.devices.host.executorch import HostExecutorch
from dlqat.devices.host.genai import HostGenai
from dlqat.devices.host.llamacpp import HostLlamacpp
from dlqat.devices.host.mlx import HostMlx
from dlqat.devices.host.ort import HostOrt
from dlqat.devices.process.child import Limits, Worker
from dlqat.devices.process.isolated import Isolated
from dlqat.devices.runner import arm64


@dataclass(frozen=True, slots=True)
class Release:
    """A version of a package. `torch`: what the emulated one needs beside it."""

    package: str
    version: str
    torch: str | None = None
    called: str | None = None
    """What --set-up calls it, where there is one version of it only."""
    beside: tuple[str, ...] = ()
    """Requirements that it needs in its folder."""

    @property
    def short(self) -> str:
        """Major and minor: what an app's documentation names."""
        return ".".join(self.version.split(".")[:2])

    @property
    def folder(self) -> Path:
        """Where its set-up puts it."""
        return fetched.release(self.package, f"{self.version}{'-arm64' if self.torch else ''}")

    @property
    def set_up(self) -> str:
        """Its name for dlqat-devices --set-up."""
        if self.called:
            return self.called
        return f"{'qemu-' if self.torch else ''}{self.package}@{self.short}"

    @property
    def script(self) -> tuple[str, ...]:
        """The script of setup/ that fetches it, and its arguments."""
        if self.torch:
            return "_qemu-release.sh", self.package, self.version, self.torch
        return "_release.sh", self.package, self.version, *self.beside


class Released(Isolated):
    """The device `inner` with the runtime of a release. `options`: conditions of apps that can be set there."""

    own_process = True

    def __init__(
        self, inner: Device, release: Release, options: tuple[Mapping[str, str], ...] = (), limits: Limits | None = None
    ) -> None:
        super().__init__(inner, limits)
        self.release, self._options = release, options

    @property
    def name(self) -> str:
        return f"{self._inner.name}@{self.release.short}"

    def available(self) -> str | None:
        if not (self.release.folder / "ready").is_file():
            return f"{self.release.package} {self.release.version} is not set up; dlqat-devices --set-up {self.release.set_up}"
        return self._inner.available()

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program
        return setting.under(self._options)

    def _worker(self) -> Worker:
        path = os.pathsep.join(filter(None, (str(self.release.folder), os.environ.get("PYTHONPATH"))))
        return Worker(self.name, self.command, {**os.environ, "PYTHONPATH": path})


class EmulatedRelease(Released):
    """The same on an emulated ARM64, in a Python for it: slow, and no statement about speed."""

    def __init__(self, inner: Device, release: Release) -> None:
        super().__init__(inner, release, limits=arm64.LIMITS)

    @property
    def name(self) -> str:
        return f"qemu-arm64-{self.release.package}@{self.release.short}"

    def _worker(self) -> Worker:
        python = setup.home() / "arm64-python"
        path = os.pathsep.join(map(str, (self.release.folder, Path(dlqat.__file__).parents[1])))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LD_")}  # the host's libraries
        environment |= {"PYTHONHOME": f"{python}/usr", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        emulator = arm64.emulator(arm64.CPU, python)
        return Worker(self.name, [*emulator, f"{python}/usr/bin/python3.11", *self.command[1:]], environment)


class Fetched(Released):
    """A runtime that no extra of dlqat brings: apps have their own build, and one version of it is fetched for the proof.
    Where it is not there, dlqat-check shows what it can without it."""

    fetched = True

    @property
    def name(self) -> str:
        return self._inner.name


FETCHED: tuple[Released, ...] = (
    Fetched(HostLlamacpp(), Release(*fetched.LLAMACPP, called="llamacpp")),
    Fetched(HostMlx(), Release("mlx-lm", "0.32.2", called="mlx", beside=("mlx==0.32.4", "mlx-cpu==0.32.4"))),
)
"""The default devices of their formats."""

RELEASES: tuple[Released, ...] = (
    Released(HostOrt(), Release("onnxruntime", "1.24.4"), ort_options.APPS),
    Released(HostOrt(), Release("onnxruntime", "1.32.0"), ort_options.APPS),
    Released(HostGenai(), Release("onnxruntime-genai", "0.13.2")),
    Released(HostExecutorch(), Release("executorch", "1.4.1")),
    EmulatedRelease(HostExecutorch(), Release("executorch", "1.0.1", torch="2.9.1")),
    EmulatedRelease(HostExecutorch(), Release("executorch", "1.2.0", torch="2.10.0")),
)
"""The oldest and the newest that artifacts are checked with, and what react-native-executorch 0.10 links (1.2)."""
