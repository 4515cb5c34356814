# SPDX-License-Identifier: Apache-2.0
"""host-executorch: ExecuTorch's runtime on this machine, with XNNPACK and the kernels of its Python wheel.

XNNPACK rounds the input of quantized linears to int8 per token by itself, so there is one setting, with int8
activations, and conditions that apps' builds have (executorch_options.py). A program may have two entry points: `forward`, which apps run and which may give the last logits only, and
`score`, which gives all; the session runs `score` unless it is told to generate.

The thread pool belongs to the process: a session sets it when it is opened.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import executorch_options, machine
from dlqat.devices.device import DeviceFailure, Session, Setting, Timings
from dlqat.devices.host import executorch_runtime

if TYPE_CHECKING:
    from torch import Tensor

FORWARD, SCORE = "forward", "score"


class HostExecutorch:
    """ExecuTorch on the CPU of this machine."""

    name = "host-executorch"
    formats = ("executorch",)

    def available(self) -> str | None:
        if importlib.util.find_spec("executorch") is None:
            return "executorch not installed; pip install 'dlqat[executorch]'"
        return None

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        del program
        return (Setting("int8", True, threads),)

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program
        offered = executorch_options.offered(executorch_runtime.wheel())
        return setting.under(executorch_options.APPS if offered else ())

    def open(self, program: Path, setting: Setting) -> Session:
        return ExecutorchSession(program, setting)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        loaded = executorch_runtime.load(program, setting.threads)
        method = loaded.method(FORWARD)
        import torch

        inputs = ([torch.from_numpy(np.ascontiguousarray(x)) for x in batch.values()] for batch in batches)
        return [_run(method, list(given)).numpy() for given in inputs]


class ExecutorchSession:
    """A decoder program with its cache inside, batch 1."""

    def __init__(self, program: Path, setting: Setting) -> None:
        self._setting = setting
        self.timings = Timings()
        start = time.perf_counter()
        self._program: Any = executorch_runtime.load(program, setting.threads, dict(setting.options))
        names = self._program.names
        self._name = SCORE if SCORE in names and not setting.generate else FORWARD
        if self._name not in names:
            raise DeviceFailure(f"{program.name} has no method {FORWARD!r}; it has {', '.join(sorted(names))}")
        self._method: Any = self._program.method(self._name)
        self.timings.load_seconds = time.perf_counter() - start
        self._longest = int(self._method.method_meta().input_tensor_meta(0).sizes()[1])
        self._context = next(iter(self._numbers("get_max_context_len")), 0)
        self._vocab = next(iter(self._numbers("get_vocab_size")), 0)
        self.reset()

    def reset(self) -> None:
        """Start at position 0: what the cache holds from there on is not read before it is written again."""
        self._length = 0

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens: a position further back is what the next step starts from."""
        self._length = min(length, self._length)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab], or the last row; DeviceFailure if the run fails."""
        rows = [self._step(token_ids[at : at + self._longest]) for at in range(0, len(token_ids), self._longest)]
        return np.concatenate(rows) if self._name == SCORE else rows[-1]

    def _step(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        if self._vocab and max(token_ids) >= self._vocab:  # the lookup would abort the process
            raise DeviceFailure(f"token {max(token_ids)} is not in the vocabulary of {self._vocab}")
        if self._context and self._length + len(token_ids) > self._context:
            raise DeviceFailure(f"{self._length + len(token_ids)} tokens are more than its context of {self._context}")
        start = time.perf_counter()
        import torch

        rows = _run(self._method, [torch.tensor([list(token_ids)]), torch.tensor([self._length])])
        self.timings.count(len(token_ids), time.perf_counter() - start)
        self._length += len(token_ids)
        return rows[0].numpy().copy()

    def facts(self) -> Mapping[str, Any]:
        """Version, machine, entry point, and the tokens that end a text according to the program."""
        return machine.facts() | {
            "runtime": f"executorch {importlib.metadata.version('executorch')}",
            "method": self._name,
            "eos": self._numbers("get_eos_ids"),
            "threads": self._setting.threads,
        }

    def _numbers(self, method: str) -> list[int]:
        """The values of a metadata method; none if there is no such method."""
        if method not in self._program.names:
            return []
        return [int(x) for x in self._program.method(method)([])]

    def close(self) -> None:
        """Free program and memory."""
        self._method = self._program = None


def _run(method: Any, inputs: list[Any]) -> Tensor:
    try:
        return method(inputs)[0]
    except RuntimeError as error:
        raise DeviceFailure(f"executorch does not run it: {executorch_runtime.line(error)}") from error
