# SPDX-License-Identifier: Apache-2.0
"""node-transformers: transformers.js in Node, its own model class on the folder that an app gives it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from dlqat import fetched
from dlqat.devices.device import Setting
from dlqat.devices.process.child import Worker
from dlqat.devices.web.ort import WebOrt, node_fault


@dataclass(eq=False)
class TransformersJs(WebOrt):
    """The kernels are those of the onnxruntime-node that the package brings, under the session options that the proof asks
    for; config.json says which files belong to a program, so the one of all logits is run."""

    name: str = "node-transformers"
    provider: str = "cpu"
    version: str = "4.3.1"
    folder: str = ""
    """The version by which its folder is told from the newest one's."""

    @property
    def set_up(self) -> str:
        """Its name for dlqat-devices --set-up."""
        return f"transformers-js{self.name.removeprefix('node-transformers')}"

    @property
    def script(self) -> tuple[str, ...]:
        """The script of setup/ that fetches it, and its arguments."""
        return "_transformers-js.sh", self.version, fetched.transformers_js(self.folder).name

    def available(self) -> str | None:
        if importlib.util.find_spec("onnx") is None:
            return "onnx not installed; pip install 'dlqat[onnx]'"
        folder = fetched.transformers_js(self.folder)
        if not (folder / "ready").is_file():
            return f"transformers.js is not in {folder}; dlqat-devices --set-up {self.set_up} (npm)"
        return node_fault()

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        return tuple(setting for setting in super().settings(program, threads) if setting.optimize)

    def _worker(self, setting: Setting) -> Worker:
        del setting
        script = Path(__file__).with_name("transformers.mjs")
        return Worker(self.name, ["node", str(script), str(fetched.transformers_js(self.folder))])


TRANSFORMERS_JS = TransformersJs(), TransformersJs("node-transformers@4.0", version="4.0.0", folder="4.0.0")
"""The newest and the oldest that artifacts are checked with."""
