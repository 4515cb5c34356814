# SPDX-License-Identifier: Apache-2.0
"""llama.cpp behind an API of JavaScript: wasm-llamacpp in a headless Chromium (wllama), node-llamacpp in Node (node-llama-cpp).

Both tell a text's tokens by llama.cpp's own tokenizer. wllama gives the probabilities of the next token and no other
numbers, so a single product cannot be run (L1 is not verified), and logits are the logarithms of probabilities.
node-llama-cpp gives logits, and runs the weights as its apps do: repacked for this CPU, which cannot be switched off there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import llamacpp_device, machine, setup
from dlqat.devices.device import NoProducts, Setting
from dlqat.devices.llamacpp_device import LlamacppDevice
from dlqat.devices.process.child import ChildSession, Limits, Worker, setting_fields
from dlqat.devices.process.wire import Message
from dlqat.devices.web import chromium
from dlqat.devices.web.ort import node_fault

LIMITS = Limits(load=300.0, call=240.0, token=5.0)


class JsLlamacpp(ChildSession):
    """A ChildSession that is told the file, and answers with tokens, too."""

    def opening(self, program: str | Path, setting: Setting) -> Message:
        path = Path(program).resolve()
        spec = {"file": str(path), "name": path.name}
        return Message({"op": "open", "spec": spec, "setting": setting_fields(setting)})

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, special ones included."""
        return self._call({"op": "tokenize", "text": text}, self._limits.call).header["tokens"]


class WasmLlamacpp(LlamacppDevice):
    """llama.cpp in a browser, on one thread."""

    name = "wasm-llamacpp"
    own_process = True

    def available(self) -> str | None:
        if not (setup.home() / "wllama" / "ready").is_file():
            return f"wllama is not in {setup.home() / 'wllama'}; dlqat-devices --set-up wllama (npm)"
        if importlib.util.find_spec("playwright") is None:
            return "playwright not installed; pip install 'dlqat[devices]'"
        return chromium.fault()

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        del program, threads
        return (Setting("int8", True, 1),)

    def open(self, program: Path, setting: Setting) -> JsLlamacpp:
        command = [sys.executable, "-m", "dlqat.devices.web.browser_worker", "llamacpp", str(setting.threads)]
        return JsLlamacpp(Worker(self.name, command), program, setting, LIMITS, machine.facts())

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        del program, batches, setting
        raise NoProducts("wllama gives the probabilities of whole models, so no product can be looked at by itself")


class NodeLlamacpp(LlamacppDevice):
    """llama.cpp in Node, on the CPU."""

    name = "node-llamacpp"
    own_process = True

    def __init__(self) -> None:
        self._evaluator: Worker | None = None

    def available(self) -> str | None:
        folder = setup.home() / "node-llamacpp"
        if not (folder / "ready").is_file():
            return f"node-llama-cpp is not in {folder}; dlqat-devices --set-up node-llamacpp (npm)"
        return node_fault()

    def open(self, program: Path, setting: Setting) -> JsLlamacpp:
        return self._session(self._worker(), program, setting)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        if self._evaluator is None or not self._evaluator.alive:
            self._evaluator = self._worker()
        worker = self._evaluator
        return llamacpp_device.evaluate(
            program, batches, lambda path: nullcontext(self._session(worker, path, setting))
        )

    def _session(self, worker: Worker, program: Path, setting: Setting) -> JsLlamacpp:
        facts = machine.facts() | {"threads": setting.threads}
        return JsLlamacpp(worker, program, setting, LIMITS, facts)

    def _worker(self) -> Worker:
        script = Path(__file__).with_name("node-llamacpp.mjs")
        return Worker(self.name, ["node", str(script), str(setup.home() / "node-llamacpp")])
