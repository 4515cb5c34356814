# SPDX-License-Identifier: Apache-2.0
"""host-ort: onnxruntime's CPU provider on this machine.

The level of the activations is chosen at load, without touching the artifact:

    qdq form   `session.qdq_matmulnbits_accuracy_level` for the MatMulNBits that onnxruntime fuses. With
               graph optimizations off nothing is fused, so every product is float whatever the level.
    ort form   `accuracy_level` is an attribute of the artifact's own MatMulNBits nodes. The graph is
               loaded without its weights, the attribute is rewritten in memory, and the session is told
               where the weights lie.
    web form   its own nodes round each linear's input to int8, so there is nothing else to choose.

Level 0 multiplies in float32; level 4 rounds each linear's input to int8 per block. Both were measured
(docs/check.md); levels 1 to 3 gave level 0's numbers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import batch, machine, ort_options
from dlqat.devices.batch import Group, GroupLogits, Step
from dlqat.devices.device import DeviceFailure, Session, Setting, Timings
from dlqat.devices.ort_options import ACCURACY_LEVEL, load, session_options

ALL_LOGITS = "num_logits_to_keep"
"""An optional input of an artifact that returns the last row only unless it is told 0: all."""
KLEIDIAI_OFF = ("mlas.disable_kleidiai", "1")
"""Arm only: without it KleidiAI's kernels multiply at level 4, and they round in another way than MLAS."""
TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class HostOrt:
    """onnxruntime on the CPU of this machine."""

    name = "host-ort"
    formats = ("onnx",)

    def available(self) -> str | None:
        if missing := [n for n in ("onnxruntime", "onnx") if importlib.util.find_spec(n) is None]:
            return f"{' and '.join(missing)} not installed; pip install 'dlqat[onnx]'"
        return None

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        return ort_settings(program, threads, arm=machine.is_arm())

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program
        return setting.under(ort_options.APPS)

    def open(self, program: Path, setting: Setting) -> Session:
        return OrtSession(program, setting)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        import onnx

        model = onnx.ModelProto.FromString(program)
        session = load(_at_level(model, setting).SerializeToString(), setting, session_options(setting))
        return [_run(session, inputs)[0] for inputs in batches]


class OrtSession:
    """A decoder graph with its cache as past_key_values.* inputs and present.* outputs, batch 1."""

    def __init__(self, program: Path, setting: Setting) -> None:
        self._program, self._setting = program, setting
        self.timings = Timings()
        start = time.perf_counter()
        graph = _graph(program)
        self._whole = _has(graph, "GroupQueryAttention")
        self._ort: Any = _open(program, graph, setting, session_options(setting))
        self.timings.load_seconds = time.perf_counter() - start
        self._inputs = {i.name: i for i in (*self._ort.get_inputs(), *self._ort.get_overridable_initializers())}
        known = {"input_ids", "attention_mask", "position_ids", ALL_LOGITS}
        if odd := [n for n in self._inputs if n not in known and not n.startswith("past_key_values.")]:
            raise DeviceFailure(f"{program.name} has inputs that no decoder of ours has: {', '.join(odd)}")
        shape = next((o.shape for o in self._ort.get_outputs() if o.name == "logits"), [None])
        self._vocab = shape[-1] if isinstance(shape[-1], int) else None
        self.reset()

    def reset(self) -> None:
        """Empty the cache: past length 0."""
        self._length = 0
        self._past: dict[str, NDArray[Any]] = {
            name: np.zeros((1, i.shape[1], 0, i.shape[3]), TYPES[i.type])
            for name, i in self._inputs.items()
            if name.startswith("past_key_values.")
        }

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the cache."""
        self._length = min(length, self._length)
        self._past = {name: value[:, :, : self._length] for name, value in self._past.items()}

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab], or the last row; DeviceFailure if the run fails."""
        ids = np.asarray(token_ids, np.int64)[None]
        total = self._length + ids.shape[1]
        step = Step(ids, np.ones((1, total), np.int64), np.arange(self._length, total)[None])
        rows, self._past = self._step(step, self._past)
        self._length = total
        return rows[0]

    @property
    def batches(self) -> bool:
        """Whether there is a batch dimension."""
        return not isinstance(self._inputs["input_ids"].shape[0], int)

    def batch(self, groups: Sequence[Group]) -> list[GroupLogits]:
        """Several short questions at once. GroupQueryAttention cannot continue a batch, so it reads whole texts."""
        self.reset()
        first = batch.whole(groups) if self._whole else batch.contexts(groups)
        empty = {n: np.zeros((len(first.ids), *v.shape[1:]), v.dtype) for n, v in self._past.items()}
        logits, past = self._step(first, empty)
        if self._whole:
            return batch.apart_whole(groups, logits)
        second, owner = batch.continuations(groups, first)
        return batch.apart(groups, logits, self._step(second, {n: v[owner] for n, v in past.items()})[0])

    def _step(
        self, step: Step, past: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Logits [rows, length, vocab] and the cache afterwards."""
        # GatherBlockQuantized reads past its table without a word
        if self._vocab and step.ids.max(initial=0) >= self._vocab:
            raise DeviceFailure(f"token {step.ids.max()} is not in the vocabulary of {self._vocab}")
        feed: dict[str, NDArray[Any]] = {
            "input_ids": step.ids,
            "attention_mask": step.mask,
            "position_ids": step.positions,
            ALL_LOGITS: np.array(0, np.int64),
        }
        feed = {n: v for n, v in feed.items() if n in self._inputs} | dict(past)
        start = time.perf_counter()
        results = dict(zip((o.name for o in self._ort.get_outputs()), _run(self._ort, feed), strict=True))
        self.timings.count(step.ids.size, time.perf_counter() - start)
        kept = {n: results[n.replace("past_key_values", "present")] for n in past}
        return results["logits"].astype(np.float32, copy=False), kept

    def facts(self) -> Mapping[str, Any]:
        """Versions, machine, level, and the kernels that really ran for one token (from ORT's own profile)."""
        return machine.facts() | {
            "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
            "provider": ", ".join(self._ort.get_providers()),
            "graph_optimization": "ORT_ENABLE_ALL" if self._setting.optimize else "ORT_DISABLE_ALL",
            "accuracy_level": ACCURACY_LEVEL[self._setting.activations],
            "threads": self._setting.threads,
            "kleidiai": "off" if KLEIDIAI_OFF in self._setting.options else machine.kleidiai(),
            "kernels": self._kernels(),
        }

    def _kernels(self) -> dict[str, int]:
        """How often each kernel runs for one token. A weight that was not fused shows as DequantizeLinear."""
        with tempfile.TemporaryDirectory() as folder:
            options = session_options(self._setting)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            ort = _open(self._program, _graph(self._program), self._setting, options)
            past = {n: v[:, :, :0] for n, v in self._past.items()}
            one: dict[str, NDArray[Any]] = {n: np.zeros((1, 1), np.int64) for n in ("input_ids", "position_ids")}
            one["attention_mask"] = np.ones((1, 1), np.int64)
            _run(ort, {n: v for n, v in one.items() if n in self._inputs} | past)
            events = json.loads(Path(ort.end_profiling()).read_text(encoding="utf-8"))
        names = [e["args"]["op_name"] for e in events if e.get("cat") == "Node" and "op_name" in e.get("args", {})]
        return dict(sorted(Counter(names).items()))

    def close(self) -> None:
        """Free the session and its cache."""
        self._ort, self._past = None, {}


def ort_settings(program: Path, threads: int, *, arm: bool) -> tuple[Setting, ...]:
    """The ways in which onnxruntime's CPU provider computes with a program; on Arm also without KleidiAI."""
    float_on, float_off = Setting("float", True, threads), Setting("float", False, threads)
    int8_on, int8_off = Setting("int8", True, threads), Setting("int8", False, threads)
    graph = _graph(program)
    if _has(graph, "MatMulInteger"):
        return int8_on, int8_off
    own_kernels = _has(graph, "MatMulNBits")
    found = (float_on, float_off, int8_on, int8_off) if own_kernels else (float_on, float_off, int8_on)
    return (*found, Setting("int8", True, threads, options=(KLEIDIAI_OFF,))) if arm else found


def _open(program: Path, model: Any, setting: Setting, options: Any) -> Any:
    """A session of `program`, whose graph is `model` (changed in place)."""
    if not _has(model, "MatMulNBits"):
        return load(str(program), setting, options)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(program.parent))
    return load(_at_level(model, setting).SerializeToString(), setting, options)


def _graph(program: Path) -> Any:
    """The ModelProto without its external weights."""
    import onnx

    try:
        return onnx.load(str(program), load_external_data=False)
    except Exception as error:
        raise DeviceFailure(f"{program} is no ONNX model ({ort_options.line(error)})") from error


def _has(model: Any, operator: str) -> bool:
    return any(node.op_type == operator for node in model.graph.node)


def _at_level(model: Any, setting: Setting) -> Any:
    """`model` with every MatMulNBits at the level of `setting` (changed in place: it is our copy)."""
    import onnx

    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            kept = [a for a in node.attribute if a.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(
                [*kept, onnx.helper.make_attribute("accuracy_level", ACCURACY_LEVEL[setting.activations])]
            )
    return model


def _run(session: Any, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    try:
        return session.run(None, dict(inputs))
    except Exception as error:
        raise DeviceFailure(f"onnxruntime does not run it: {ort_options.line(error)}") from error
