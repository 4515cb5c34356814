# SPDX-License-Identifier: Apache-2.0
"""Write a tiny model as a Core ML package, and run it in the interpreter with its states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlqat import architecture
from dlqat.exporters import pipeline
from dlqat.exporters.coreml import package as coreml_package
from dlqat.exporters.coreml import target as coreml_target
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from dlqat.mil.interpreter import Interpreter, Precision, State
from dlqat.mil.program import Package
from toy_tokenizer import toy_tokenizer

CONTEXT = 64


def write(model: FoldedModel, folder: Path, target: str = "iOS18", context: int = CONTEXT) -> Path:
    """folder/model.mlpackage alone, without a reference or golden outputs."""
    made = coreml_package.write(model, architecture.read(model.config), context, target, lambda _: None)
    coreml_package.save(made, folder / "model.mlpackage", model.config, None, context)
    return folder / "model.mlpackage"


def export(folder: Path, model: FoldedModel, target: str = "iOS18", context: int = 128) -> Path:
    """folder/folded and folder/coreml with a tokenizer, as dlqat-export writes them; the artifact folder."""
    folder.mkdir(parents=True, exist_ok=True)
    toy_tokenizer().save_pretrained(folder)
    disk.write(model, folder / "folded", files=folder)
    options = coreml_target.Options(context, coreml_target.FORMS[0], deployment_target=target)
    pipeline.write(coreml_target, disk.read(folder / "folded"), folder / "folded", folder / "coreml", options)
    return folder / "coreml"


class Text:
    """A text that grows with every step."""

    def __init__(self, package: Path, precision: Precision = "float32") -> None:
        self.program = Interpreter(Package(package), precision)
        self.state: State = self.program.make_state()
        self.length = 0

    def step(self, ids: Sequence[int], mask: np.ndarray | None = None) -> np.ndarray:
        """Logits [len(ids), vocab]. `mask`: what is sent as causalMask; zeros, as swift-transformers sends."""
        self.length += len(ids)
        mask = np.zeros((1, 1, 1, self.length + 1), np.float16) if mask is None else mask
        inputs = {"inputIds": np.asarray(ids, np.int32)[None], "causalMask": mask}
        return self.program.run(inputs, self.state)["logits"][0].numpy()
