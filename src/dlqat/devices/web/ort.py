# SPDX-License-Identifier: Apache-2.0
"""onnxruntime in JavaScript: onnxruntime-web in a headless Chromium (wasm, WebGPU), onnxruntime-node in Node.

The artifact runs as it was shipped. The WebAssembly kernels of MatMulNBits ignore accuracy_level (they multiply in
float32). onnxruntime-node has the native kernels of this machine, and its level is that of the artifact, as it is on
WebGPU, where level 4 rounds the input in blocks of 128 if a row can be cut into them. Rung L1 shows whether that is true.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import machine, setup
from dlqat.devices.device import Session, Setting
from dlqat.devices.ort_options import ACCURACY_LEVEL
from dlqat.devices.ort_spec import integer_products, options, shipped_level, spec
from dlqat.devices.process import child
from dlqat.devices.process.child import ChildSession, Limits, Worker
from dlqat.devices.process.wire import Message
from dlqat.devices.web import chromium

SLOW = Limits(load=300.0, call=240.0, token=5.0)
"""WebGPU on a software adapter is a hundred times slower than native code."""
NODE = 20
ASK = 30.0
"""Seconds that Node may take to say its version."""
DENSE = ("disable_quant_qdq", "1")
"""The qdq form, its weights turned into float32 when it is loaded: seven times faster in wasm, twice the memory."""


@dataclass(eq=False)
class WebOrt:
    """onnxruntime in JavaScript. `provider`: wasm or webgpu in the browser, cpu in Node."""

    name: str
    provider: str
    threaded: bool = False
    formats: tuple[str, ...] = ("onnx",)
    own_process: bool = True
    _evaluators: dict[Setting, Worker] = field(default_factory=dict[Setting, Worker])

    def available(self) -> str | None:
        if importlib.util.find_spec("onnx") is None:
            return "onnx not installed; pip install 'dlqat[onnx]'"
        folder = setup.home() / "npm"
        wanted = "onnxruntime-node" if self.provider == "cpu" else "onnxruntime-web"
        if not all((folder / name).is_file() for name in ("ready", f"node_modules/{wanted}/package.json")):
            return f"{wanted} is not in {folder}, or not wholly; dlqat-devices --set-up web (npm)"
        if self.provider == "cpu":
            return node_fault()
        if importlib.util.find_spec("playwright") is None:
            return "playwright not installed; pip install 'dlqat[devices]'"
        return chromium.fault()

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        count = threads if self.provider == "cpu" else max(2, threads) if self.threaded else 1
        float_on, float_off = Setting("float", True, count), Setting("float", False, count)
        if integer_products(program):
            return Setting("int8", True, count), Setting("int8", False, count)
        level = shipped_level(program)
        if self.provider == "wasm" and level is None:
            return float_on, Setting("float", True, count, options=(DENSE,)), float_off
        if self.provider == "wasm" or (self.provider == "webgpu" and level is None):
            return float_on, float_off
        if level is None:
            return float_on, float_off, Setting("int8", True, count)
        return (Setting("int8", True, count), Setting("int8", False, count)) if level == 4 else (float_on, float_off)

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program, setting
        return ()

    def open(self, program: Path, setting: Setting) -> Session:
        return WebSession(self._worker(setting), program, setting, self.provider)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        found = self._evaluators.get(setting)
        if found is None or not found.alive:
            found = self._evaluators[setting] = self._worker(setting)
        return child.evaluate(found, program, batches, setting, SLOW, {"options": options(setting, self.provider)})

    def _worker(self, setting: Setting) -> Worker:
        if self.provider == "cpu":
            command = ["node", str(Path(__file__).with_name("worker.mjs")), str(setup.home() / "npm")]
        else:
            command = [sys.executable, "-m", "dlqat.devices.web.browser_worker", self.provider, str(setting.threads)]
        return Worker(self.name, command)


class WebSession(ChildSession):
    """A ChildSession whose worker is told what the graph looks like."""

    def __init__(self, worker: Worker, program: Path, setting: Setting, provider: str) -> None:
        extra: dict[str, Any] = machine.facts() | {
            "graph_optimization": "all" if setting.optimize else "disabled",
            "accuracy_level": _level(program, setting, provider),
            **({"threads": setting.threads, "kleidiai": machine.kleidiai()} if provider == "cpu" else {}),
        }
        self._opening = {"op": "open", "spec": spec(program), "options": options(setting, provider)}
        super().__init__(worker, program, setting, SLOW, extra)

    def opening(self, program: str | Path, setting: Setting) -> Message:
        return Message(self._opening)


def _level(program: Path, setting: Setting, provider: str) -> int | str:
    """The accuracy_level that runs, or why there is none."""
    if integer_products(program):
        return "none: the artifact rounds by operators of its own"
    if provider == "wasm":
        return "none: the WebAssembly kernels ignore it"
    level = shipped_level(program)
    return ACCURACY_LEVEL[setting.activations] if level is None else level


@cache
def node_fault() -> str | None:
    if shutil.which("node") is None:
        return f"node is not on PATH; install Node {NODE} or newer"
    try:
        done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False, timeout=ASK)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"node does not say its version ({error}); install Node {NODE} or newer"
    shown = done.stdout.strip()
    major = shown.lstrip("v").partition(".")[0]
    return None if major.isdigit() and int(major) >= NODE else f"node is {shown or 'broken'}; {NODE} or newer is needed"
