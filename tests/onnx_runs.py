# SPDX-License-Identifier: Apache-2.0
"""Write a tiny model in either ONNX form, and run it in onnxruntime with its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from dlqat import architecture
from dlqat.exporters import decoder
from dlqat.exporters.onnx.ort import Ort
from dlqat.exporters.onnx.qdq import Qdq
from dlqat.folded.disk import FoldedModel

FORMS = ("qdq", "ort")
CONTEXT = 64


def write(model: FoldedModel, folder: Path, form: str) -> Path:
    """model.onnx in `folder`, its products in float32 (accuracy_level 0)."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = architecture.read(model.config)
    b = Qdq(facts, folder) if form == "qdq" else Ort(facts, folder, CONTEXT, accuracy_level=0)
    decoder.forward(b, model)
    b.save({"dlqat.form": form})
    return folder / "model.onnx"


def session(path: Path, *, optimize: bool = True, dump: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def operators(path: Path, scratch: Path) -> list[str]:
    """The operators that onnxruntime runs after its own optimizations."""
    dump = scratch / "optimized.onnx"
    session(path, dump=dump)
    return [node.op_type for node in onnx.load(str(dump), load_external_data=False).graph.node]


class Text:
    """A batch whose cache grows with every step."""

    def __init__(self, run: ort.InferenceSession, batch: int = 1) -> None:
        self.run, self.mask = run, np.zeros((batch, 0), np.int64)
        self.past: dict[str, Any] = {
            i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32)
            for i in run.get_inputs()
            if i.name.startswith("past_key_values")
        }

    def step(self, ids: Any, mask: Any = None, keep: int | None = None) -> np.ndarray:
        """Logits of ids [batch, tokens]; mask 0: padding. `keep`: num_logits_to_keep, None: not fed."""
        ids = np.atleast_2d(np.asarray(ids, np.int64))
        self.mask = np.concatenate([self.mask, np.ones_like(ids) if mask is None else np.asarray(mask, np.int64)], 1)
        positions = np.maximum(self.mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions, **self.past}
        feed = {n: v for n, v in feed.items() if n in {i.name for i in self.run.get_inputs()}}
        if keep is not None:
            feed["num_logits_to_keep"] = np.array(keep, np.int64)
        names = [o.name for o in self.run.get_outputs()]
        results = dict(zip(names, self.run.run(None, feed), strict=True))
        self.past = {n: results[n.replace("past_key_values", "present")] for n in self.past}
        return results["logits"]
