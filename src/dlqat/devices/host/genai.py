# SPDX-License-Identifier: Apache-2.0
"""host-genai: onnxruntime-genai on this machine, on the folder that an app gives it.

genai_config.json is read as it was shipped: session options, names of inputs, the way in which the cache is kept. Only the
name of the program is laid over it, so that the proof can also run the one that gives the logits of all positions. The
kernels are those of the onnxruntime that genai loads.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat import json_file
from dlqat.devices import machine
from dlqat.devices.device import DeviceFailure, Session, Setting, Timings
from dlqat.devices.host.ort import HostOrt
from dlqat.devices.ort_options import ACCURACY_LEVEL, line
from dlqat.devices.ort_spec import integer_products, shipped_level

CONFIG = "genai_config.json"


class HostGenai(HostOrt):
    """onnxruntime-genai on the CPU of this machine; single products run on its onnxruntime."""

    name = "host-genai"

    def available(self) -> str | None:
        if importlib.util.find_spec("onnxruntime_genai") is None:
            return "onnxruntime-genai not installed; pip install onnxruntime-genai"
        return super().available()

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        level = shipped_level(program)
        if level is not None or integer_products(program):
            activations = "float" if level == 0 else "int8"
            return (Setting(activations, True, threads),)
        # the qdq form: genai lets onnxruntime fuse its products, in the blocks that its config asks for
        own = _session_options(program)
        return tuple(Setting(kind, True, threads, options=own) for kind in ("float", "int8"))

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program, setting
        return ()

    def open(self, program: Path, setting: Setting) -> Session:
        return GenaiSession(program, setting)


class GenaiSession:
    """A Generator of onnxruntime-genai, batch 1; nothing is sampled, tokens are appended."""

    def __init__(self, program: Path, setting: Setting) -> None:
        self._setting, self.timings = setting, Timings()
        self._og: Any = importlib.import_module("onnxruntime_genai")
        folder = _folder(program)
        level = str(ACCURACY_LEVEL[setting.activations])
        session = {"intra_op_num_threads": setting.threads, "session.qdq_matmulnbits_accuracy_level": level}
        decoder = {"filename": program.relative_to(folder).as_posix(), "session_options": session}
        start = time.perf_counter()
        try:
            config = self._og.Config(str(folder))
            config.overlay(json.dumps({"model": {"decoder": decoder}}))
            self._model: Any = self._og.Model(config)
        except Exception as error:
            raise DeviceFailure(f"onnxruntime-genai does not load it: {line(error)}") from error
        self.timings.load_seconds = time.perf_counter() - start
        model = _config(program)["model"]
        self._room, self._vocab = int(model["context_length"]), int(model["vocab_size"])
        self.reset()

    def reset(self) -> None:
        """A new Generator, whose cache is empty."""
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=self._room)
        self._generator: Any = self._og.Generator(self._model, parameters)
        self._length = 0

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the cache, by genai's own rewind."""
        if length < self._length:
            self._generator.rewind_to(length)
            self._length = length

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab], or the last row; DeviceFailure if the run fails."""
        if max(token_ids) >= self._vocab:
            raise DeviceFailure(f"token {max(token_ids)} is not in the vocabulary of {self._vocab}")
        if self._length + len(token_ids) > self._room:
            raise DeviceFailure(f"{self._length + len(token_ids)} tokens are more than its context of {self._room}")
        start = time.perf_counter()
        try:
            self._generator.append_tokens(np.asarray([token_ids], np.int32))
            rows = np.array(self._generator.get_output("logits"), np.float32)[0]
        except Exception as error:
            raise DeviceFailure(f"onnxruntime-genai does not run it: {line(error)}") from error
        self.timings.count(len(token_ids), time.perf_counter() - start)
        self._length += len(token_ids)
        return rows

    def facts(self) -> Mapping[str, Any]:
        """Versions, machine and level."""
        return machine.facts() | {
            "runtime": f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')}",
            "kernels_of": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
            "accuracy_level": ACCURACY_LEVEL[self._setting.activations],
            "threads": self._setting.threads,
            "kleidiai": machine.kleidiai(),
        }

    def close(self) -> None:
        """Free generator and model."""
        self._generator = self._model = None


def _folder(program: Path) -> Path:
    """The folder that genai is given: the nearest one above the program with its config."""
    for folder in program.parents[:2]:
        if (folder / CONFIG).is_file():
            return folder
    raise DeviceFailure(f"{program} has no {CONFIG} beside or above it, so onnxruntime-genai cannot load it")


def _config(program: Path) -> dict[str, Any]:
    return json_file.read(_folder(program) / CONFIG)


def _session_options(program: Path) -> tuple[tuple[str, str], ...]:
    """The entries of the session's configuration in genai_config.json."""
    found = _config(program)["model"]["decoder"]["session_options"]
    return tuple((key, str(value)) for key, value in found.items() if key.startswith("session."))
