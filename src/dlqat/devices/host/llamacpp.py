# SPDX-License-Identifier: Apache-2.0
"""host-llamacpp: llama.cpp on this machine, through cyllama's wheel (releases.py has the version and how it is fetched).

llama.cpp's kernels round the input of quantized linears to int8 in blocks of 32. The cache is float32 here, without
flash attention: apps have float16 by default, which the report says. Weights are not repacked (`use_extra_bufts`): which
repacked kernels there are depends on the CPU. Those for AVX2 round alike, halves too (node-llamacpp has them).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import llamacpp_device, machine
from dlqat.devices.device import DeviceFailure, Session, Setting, Timings
from dlqat.devices.llamacpp_device import LlamacppDevice

BATCH, CONTEXT = 512, 4096
F32 = 0


class HostLlamacpp(LlamacppDevice):
    """llama.cpp on the CPU of this machine."""

    name = "host-llamacpp"

    def available(self) -> str | None:
        return None

    def lacks(self, form: str) -> str | None:
        """Why it does not load artifacts of a form of its format, or None."""
        return "its llama.cpp is older than Q2_0; --device node-llamacpp has it" if form == "q2_0" else None

    def open(self, program: Path, setting: Setting) -> Session:
        return LlamacppSession(program, setting)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        return llamacpp_device.evaluate(program, batches, lambda path: closing(LlamacppSession(path, setting)))


class LlamacppSession:
    """A model with one cache, batch 1."""

    def __init__(self, program: Path, setting: Setting) -> None:
        self._setting, self.timings = setting, Timings()
        lib: Any = importlib.import_module("cyllama.llama.llama_cpp")
        lib.disable_logging()
        self._lib = lib

        class Model(lib.LlamaModel):
            """cyllama 0.2.18 asks its model for a number that it keeps with the vocabulary."""

            @property
            def n_vocab(self) -> int:
                return self.get_vocab().n_vocab

        start = time.perf_counter()
        parameters = lib.LlamaModelParams()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = False
        try:
            self._model: Any = Model(path_model=str(program), params=parameters)
            own = lib.LlamaContextParams()
            own.n_ctx = max(BATCH, min(CONTEXT, self._model.n_ctx_train))
            own.n_batch = own.n_ubatch = BATCH
            own.n_threads = own.n_threads_batch = setting.threads
            own.type_k = own.type_v = F32
            own.flash_attn_type = 0
            own.swa_full = True  # so that a cache with windows can be taken back
            self._context: Any = lib.LlamaContext(model=self._model, params=own)
        except (ValueError, RuntimeError, OSError) as error:
            raise DeviceFailure(f"llama.cpp does not load it: {' '.join(str(error).split())[:300]}") from error
        self._room = own.n_ctx
        self._vocab: Any = self._model.get_vocab()
        self.timings.load_seconds = time.perf_counter() - start
        self._length = 0

    def reset(self) -> None:
        self.truncate(0)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of the cache."""
        self._context.memory_seq_rm(0, length, -1)
        self._length = min(length, self._length)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab]; DeviceFailure if the run fails."""
        parts = [self._step(token_ids[at : at + BATCH]) for at in range(0, len(token_ids), BATCH)]
        return np.concatenate(parts)

    def _step(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        if self._length + len(token_ids) > self._room:
            raise DeviceFailure(f"{self._length + len(token_ids)} tokens are more than its context of {self._room}")
        if max(token_ids) >= self._vocab.n_vocab:
            raise DeviceFailure(f"token {max(token_ids)} is not in the vocabulary of {self._vocab.n_vocab}")
        batch = self._lib.LlamaBatch(n_tokens=len(token_ids), embd=0, n_seq_max=1)
        for i, token in enumerate(token_ids):
            batch.add(int(token), self._length + i, [0], True)
        start = time.perf_counter()
        if code := self._context.decode(batch):
            raise DeviceFailure(f"llama_decode failed with code {code}")
        self.timings.count(len(token_ids), time.perf_counter() - start)
        self._length += len(token_ids)
        rows = [np.array(self._context.get_logits_ith(i), np.float32) for i in range(len(token_ids))]
        return np.stack(rows)

    def facts(self) -> Mapping[str, Any]:
        """Versions, machine, and what of llama.cpp's defaults is switched off."""
        return machine.facts() | {
            "runtime": f"llama.cpp {self._lib.ggml_commit()}, ggml {self._lib.ggml_version()}",
            "binding": f"cyllama {importlib.metadata.version('cyllama')}",
            "threads": self._setting.threads,
            "cache": "float32, no flash attention, weights not repacked",
        }

    def close(self) -> None:
        """Free context and model."""
        self._context.close()
        self._model.close()
