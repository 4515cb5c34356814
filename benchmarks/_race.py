# SPDX-License-Identifier: Apache-2.0
"""Speed, load time and memory of language models that generate, on a machine that is not quiet.

On one thread all models are open in one process and take turns, decode steps token by token, in an order that turns
around every time, and CPU time counts. On more threads that would not do (the runtimes' idle threads spin, and two
pools of them fight for the cores): processes of one model each take turns, the wall clock counts, and the best round
of each, because others can only make it slower.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PROMPT: list[int] = np.random.default_rng(0).integers(100, 40000, 256).tolist()
PREFILLS, DECODE = 3, 64
LENGTH = len(PROMPT) + DECODE + 8


class Contestant(Protocol):
    """A model that generates greedily; every call makes one token."""

    def prefill(self) -> None: ...
    def decode(self) -> None: ...


class Genai:
    """A folder in onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int, options: Mapping[str, str] | None = None) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        session = {"intra_op_num_threads": threads, **(options or {})}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.og, self.model = og, og.Model(config)

    def prefill(self) -> None:
        parameters = self.og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=LENGTH, min_length=LENGTH, do_sample=False)
        self.generator = self.og.Generator(self.model, parameters)
        self.generator.append_tokens(PROMPT)
        self.generator.generate_next_token()

    def decode(self) -> None:
        self.generator.generate_next_token()


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, file: Path, threads: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        counts = {"n_threads": threads, "n_threads_batch": threads}
        self.llama = llama_cpp.Llama(str(file), n_ctx=LENGTH, n_batch=512, **counts, verbose=False)

    def prefill(self) -> None:
        self.llama.reset()
        self.llama.eval(PROMPT)
        self.token = self._top()

    def decode(self) -> None:
        self.llama.eval([self.token])
        self.token = self._top()

    def _top(self) -> int:
        row = self.api.llama_get_logits_ith(self.llama._ctx.ctx, -1)  # noqa: SLF001
        return int(np.ctypeslib.as_array(row, (self.llama.n_vocab(),)).argmax())


class Pte:
    """A .pte in ExecuTorch's runtime."""

    def __init__(self, path: Path, threads: int) -> None:
        from dlqat.devices.device import Setting
        from dlqat.devices.host.executorch import HostExecutorch

        self.session = HostExecutorch().open(path, Setting("int8", threads=threads, generate=True))

    def prefill(self) -> None:
        self.session.reset()
        self.token = int(self.session.logits(PROMPT)[-1].argmax())

    def decode(self) -> None:
        self.token = int(self.session.logits([self.token])[-1].argmax())


RUNTIMES = {
    "": (Genai, ["onnxruntime_genai"]),
    ".gguf": (LlamaCpp, ["llama_cpp"]),
    ".pte": (Pte, ["executorch.kernels.quantized", "executorch.extension.llm.custom_ops.custom_ops"]),
}
"""By the suffix of the model's path: its runtime, and what is imported before memory counts."""


def measure(paths: Mapping[str, Path], base: str, threads: int, rounds: int) -> dict[str, dict[str, Any]]:
    """A row for each model: the best round's times, ratios to `base` (above 1: faster), load time, memory, bytes."""
    names = list(paths)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 else names[::-1]:
            runs[name].append(_child([str(paths[name]), str(threads)], threads))
    rows = {name: {key: min(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    if threads == 1:
        for name, times in _child(["race", str(rounds), *map(str, paths.values())], 1).items():
            rows[next(n for n in names if str(paths[n]) == name)].update(times)
    return {n: {**row, **_ratios(rows[base], row), "ratio_to": base, "mb": size(paths[n])} for n, row in rows.items()}


def _child(arguments: list[str], threads: int) -> dict[str, Any]:
    """What a process of this file prints. OpenMP's idle threads would count as CPU time."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(printed.splitlines()[-1])


def race(models: Mapping[str, Contestant], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU time of a prefill (the fastest) and a decode step (the median), the models taking turns."""
    names = list(models)
    prefill: dict[str, list[float]] = {name: [] for name in names}
    decode: dict[str, list[float]] = {name: [] for name in names}

    def timed(step: Callable[[], None], into: list[float]) -> None:
        began = time.process_time()
        step()
        into.append((time.process_time() - began) * 1e3)

    for turn in range(rounds):
        for name in names if turn % 2 else names[::-1]:
            timed(models[name].prefill, prefill[name])
        for i in range(DECODE):
            for name in names if i % 2 else names[::-1]:
                timed(models[name].decode, decode[name])
    return {
        n: {"prefill_ms": round(min(prefill[n]), 2), "decode_ms": round(float(np.median(decode[n])), 2)} for n in names
    }


def _ratios(base: Mapping[str, float], row: Mapping[str, float]) -> dict[str, float]:
    return {f"{phase}_ratio": round(base[f"{phase}_ms"] / row[f"{phase}_ms"], 3) for phase in ("prefill", "decode")}


def size(path: Path) -> float:
    """MB of the model files (not of the tokenizer)."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in (".onnx", ".data", ".onnx_data")]
    return round(sum(p.stat().st_size for p in files) / 1e6, 1)


def _run(path: Path, threads: int) -> None:
    """What `measure` reads. rss_mb is above that of a process which has only imported the runtime."""
    runtime, imports = RUNTIMES[path.suffix]
    for name in imports:
        import_module(name)
    before, began = _status("VmRSS"), time.perf_counter()
    model = runtime(path, threads)
    load = time.perf_counter() - began
    clock = time.process_time if threads == 1 else time.perf_counter
    prefill, decode = list[float](), list[float]()
    for times, step, count in ((prefill, model.prefill, PREFILLS), (decode, model.decode, DECODE)):
        for _ in range(count):
            start = clock()
            step()
            times.append((clock() - start) * 1e3)
    speed = {"prefill_ms": round(min(prefill), 2), "decode_ms": round(float(np.median(decode)), 2)}
    memory = {"rss_mb": round(_status("VmRSS") - before), "peak_rss_mb": round(_status("VmHWM"))}
    print(json.dumps({**speed, "load_s": round(load, 3), **memory}))


def _status(field: str) -> float:
    """MB of a line of this process's status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


if __name__ == "__main__":
    if sys.argv[1] == "race":
        print(json.dumps(race({p: RUNTIMES[Path(p).suffix][0](Path(p), 1) for p in sys.argv[3:]}, int(sys.argv[2]))))
    else:
        _run(Path(sys.argv[1]), int(sys.argv[2]))
