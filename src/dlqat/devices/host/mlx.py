# SPDX-License-Identifier: Apache-2.0
"""host-mlx: mlx-lm on the CPU of this machine, as it loads the folder, in float32 (releases.py has the version).

Floats of a 16-bit form are widened, which changes no number: what mlx computes in 16 bits, on an Apple GPU, is another
arithmetic, and the report says that it was not run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import machine
from dlqat.devices.device import DeviceFailure, Session, Setting, Timings


class HostMlx:
    """mlx and mlx-lm on the CPU."""

    name = "host-mlx"
    formats = ("mlx",)

    def available(self) -> str | None:
        return None

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        del program
        return (Setting("float", True, threads),)

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program, setting
        return ()

    def open(self, program: Path, setting: Setting) -> Session:
        return MlxSession(program, setting)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        """A safetensors file with weight, scales and biases: products of rows, or rows looked up."""
        del setting
        mx = _mlx()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "product.safetensors"
            path.write_bytes(program)
            found, metadata = mx.load(str(path), return_metadata=True)
            layout = {key: int(metadata[key]) for key in ("group_size", "bits")}
            w, scales, biases = (found[k] for k in ("weight", "scales", "biases"))
            scales, biases = (x.astype(mx.float32) for x in (scales, biases))
            results: list[NDArray[np.float32]] = []
            for batch in batches:
                (given,) = batch.values()
                x = mx.array(given)
                if np.issubdtype(given.dtype, np.integer):
                    rows = mx.dequantize(w[x], scales[x], biases[x], **layout)
                else:
                    rows = mx.quantized_matmul(x, w, scales, biases, transpose=True, **layout)
                results.append(np.array(rows.astype(mx.float32)))
        return results


class MlxSession:
    """A model of mlx-lm with its cache, batch 1."""

    def __init__(self, program: Path, setting: Setting) -> None:
        self._setting, self.timings = setting, Timings()
        start = time.perf_counter()
        self._mx = mx = _mlx()
        utils: Any = importlib.import_module("mlx_lm.utils")
        self._caches: Any = importlib.import_module("mlx_lm.models.cache")
        try:
            model: Any = utils.load_model(program.parent)[0]
        except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
            raise DeviceFailure(f"mlx-lm does not load it: {' '.join(str(error).split())[:300]}") from error
        model.set_dtype(mx.float32)
        self._model: Any = model
        self.timings.load_seconds = time.perf_counter() - start
        self.reset()

    def reset(self) -> None:
        self._cache: Any = self._caches.make_prompt_cache(self._model)
        self._read: list[int] = []

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of the cache. Windows that are full forgot others: these are read again."""
        kept = self._read[:length]
        if self._caches.can_trim_prompt_cache(self._cache):
            self._caches.trim_prompt_cache(self._cache, len(self._read) - len(kept))
            self._read = kept
            return
        self.reset()
        if kept:
            self.logits(kept)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab]."""
        start = time.perf_counter()
        rows = self._model(self._mx.array([list(token_ids)]), cache=self._cache)[0]
        found = np.array(rows.astype(self._mx.float32))
        self.timings.count(len(token_ids), time.perf_counter() - start)
        self._read += [int(i) for i in token_ids]
        return found

    def facts(self) -> Mapping[str, Any]:
        """Versions, machine, and what a run here leaves open."""
        return machine.facts() | {
            "runtime": f"mlx {importlib.metadata.version('mlx')}",
            "client": f"mlx-lm {importlib.metadata.version('mlx-lm')}",
            "threads": self._setting.threads,
            "not_verified": {"Apple GPU": "mlx computed on this CPU, in float32"},
        }

    def close(self) -> None:
        """Free the model."""
        self._model = self._cache = None


def _mlx() -> Any:
    mx: Any = importlib.import_module("mlx.core")
    mx.set_default_device(mx.cpu)
    return mx
