# SPDX-License-Identifier: Apache-2.0
"""Any device of this machine in a child process: a runtime that crashes or hangs ends a check, not the command."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices.device import Device, Session, Setting, lacks
from dlqat.devices.process import child
from dlqat.devices.process.child import ChildSession, Limits, Worker


class Isolated:
    """The device `inner`, whose class needs no arguments, in workers of its own."""

    def __init__(self, inner: Device, limits: Limits | None = None) -> None:
        self._inner, self._limits = inner, limits or Limits()
        self._evaluator: Worker | None = None

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def formats(self) -> tuple[str, ...]:
        return self._inner.formats

    def available(self) -> str | None:
        return self._inner.available()

    def lacks(self, form: str) -> str | None:
        """What the inner device says."""
        return lacks(self._inner, form)

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        return self._inner.settings(program, threads)

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        return self._inner.conditions(program, setting)

    def open(self, program: Path, setting: Setting) -> Session:
        return ChildSession(self._worker(), program.resolve(), setting, self._limits)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        if self._evaluator is None or not self._evaluator.alive:
            self._evaluator = self._worker()  # after a crash, the next program gets a new one
        return child.evaluate(self._evaluator, program, batches, setting, self._limits)

    def close(self) -> None:
        """End the worker that evaluates small programs."""
        if self._evaluator is not None:
            self._evaluator.close()
            self._evaluator = None

    @property
    def command(self) -> list[str]:
        """What starts a worker."""
        kind = type(self._inner)
        return [sys.executable, "-m", "dlqat.devices.process.worker", f"{kind.__module__}:{kind.__qualname__}"]

    def _worker(self) -> Worker:
        return Worker(self.name, self.command)


def isolated(device: Device) -> Device:
    """`device` in a child process, unless it drives one by itself (it says so with `own_process`)."""
    return device if getattr(device, "own_process", False) else Isolated(device)
