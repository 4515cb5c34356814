# SPDX-License-Identifier: Apache-2.0
"""wasm-llamacpp: llama.cpp's WebAssembly kernels in a headless Chromium, through wllama.

wllama gives the probabilities of the next token and no other numbers, so a single product cannot be run (L1 is not
verified), and logits are the logarithms of probabilities. Its tokenizer is llama.cpp's own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import machine, setup
from dlqat.devices.device import NoProducts, Setting
from dlqat.devices.process.child import ChildSession, Limits, Worker
from dlqat.devices.process.wire import Message
from dlqat.devices.web import chromium

LIMITS = Limits(load=300.0, call=240.0, token=5.0)


class WasmLlamacpp:
    """llama.cpp in a browser, on one thread."""

    name = "wasm-llamacpp"
    formats = ("gguf",)
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

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program, setting
        return ()

    def open(self, program: Path, setting: Setting) -> LlamacppPage:
        command = [sys.executable, "-m", "dlqat.devices.web.browser_worker", "llamacpp", str(setting.threads)]
        return LlamacppPage(Worker(self.name, command), program, setting, LIMITS, machine.facts())

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        del program, batches, setting
        raise NoProducts("wllama gives the probabilities of whole models, so no product can be looked at by itself")


class LlamacppPage(ChildSession):
    """A ChildSession that is told the file, and answers with tokens, too."""

    def opening(self, program: str | Path, setting: Setting) -> Message:
        path = Path(program).resolve()
        return Message({"op": "open", "spec": {"file": str(path), "name": path.name}})

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, special ones included."""
        return self._call({"op": "tokenize", "text": text}, self._limits.call).header["tokens"]
