# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode of our two ONNX forms beside onnxruntime-genai's own model builder and llama.cpp.

    python benchmarks/onnx_speed.py [--threads 1] [--decode 64]

SmolLM2-135M, int4 symmetric g32 blocks, int8 head, prompt of 256 random tokens. All models are open in one
process and take turns: prefills alternate, decode steps alternate token by token, in an order that turns
around every time, so that a busy machine slows all of them alike. On one thread CPU time of the process is
what counts. Results are ratios to the builder's model (above 1: faster), from the minimum of the prefills
and the median of the decode steps. llama.cpp joins if llama-cpp-python is installed (Q4_0, quantized here).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from _common import Results, smollm2

from dlqat import adapter, checkpoint, source
from dlqat.checkpoint import FoldedModel, Lazy
from dlqat.recipe import portable
from dlqat.trainer.search import search

PROMPT = np.random.default_rng(0).integers(100, 40000, 256).tolist()
BUILDER = "genai builder"


class Contestant(Protocol):
    """A model that generates greedily; every call makes one token."""

    def prefill(self) -> None: ...
    def decode(self) -> None: ...


class Genai:
    """A folder in onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int, length: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(options))
        self.og, self.model, self.length = og, og.Model(config), length

    def prefill(self) -> None:
        parameters = self.og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=self.length, min_length=self.length, do_sample=False)
        self.generator = self.og.Generator(self.model, parameters)
        self.generator.append_tokens(PROMPT)
        self.generator.generate_next_token()

    def decode(self) -> None:
        self.generator.generate_next_token()


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, file: Path, threads: int, length: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.llama = llama_cpp.Llama(
            str(file), n_ctx=length, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )

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


def fold(target: Path) -> None:
    """The model rounded to nearest: speed does not depend on which integers they are."""
    origin = source.resolve(smollm2())
    weights = source.weights(origin)
    shapes = {n.removesuffix(".weight"): tuple(weights[n].shape) for n in weights if n.endswith(".weight")}
    specs = portable().layers({n: (s[0], s[1]) for n, s in shapes.items() if len(s) == 2})

    def layer(name: str) -> Any:
        weight, grid = weights[f"{name}.weight"], specs[name].grid
        return adapter.fold(weight, adapter.Adapter(grid, *search(weight, grid)))

    plain = [n for n in weights if n.removesuffix(".weight") not in specs]
    files = target.parent / "files"
    loaded = source.load(origin)
    loaded.files(files)
    loaded.model.save_pretrained(files)  # what the builder reads
    made = FoldedModel(origin.config, Lazy(list(specs), layer), Lazy(plain, weights.__getitem__), specs)
    checkpoint.write(made, target, files)


def exports(home: Path) -> dict[str, Path]:
    """Our two forms and the builder's model, each written by its own command."""
    fold(home / "folded")
    ours = [sys.executable, "-m", "dlqat.exporters.cli", str(home / "folded"), "--no-verify", "--form"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(home / "files"), "-p", "int4"]
    builder += ["-e", "cpu", "-o", str(home / "builder"), "--extra_options", "block_size=32"]
    builder += ["is_symmetric=true", "algo_config=rtn_last", "accuracy_level=4"]
    commands = {
        "dlqat qdq": ([*ours, "qdq", "-o", str(home / "qdq")], home / "qdq"),
        "dlqat ort": ([*ours, "ort", "-o", str(home / "ort")], home / "ort"),
        BUILDER: (builder, home / "builder"),
    }
    for name, (command, _) in commands.items():
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        print(f"{name}: exported in {time.perf_counter() - began:.0f} s", flush=True)
    return {name: folder for name, (_, folder) in commands.items()}


def q4_0(home: Path) -> Path | None:
    """Q4_0 with an 8-bit head from the wheel's Q4_1, by llama.cpp itself; None if llama-cpp-python is not here."""
    try:
        import llama_cpp
    except ImportError:
        return None
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = 2, True  # LLAMA_FTYPE_MOSTLY_Q4_0
    options.token_embedding_type = options.output_tensor_type = 8  # GGML_TYPE_Q8_0
    made = home / "q4_0.gguf"
    code = llama_cpp.llama_model_quantize(smollm2().encode(), str(made).encode(), ctypes.byref(options))
    return made if code == 0 else None


def race(models: dict[str, Contestant], tokens: int, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Milliseconds of every prefill and decode step, the models taking turns."""
    names = list(models)
    prefill: dict[str, list[float]] = {name: [] for name in names}
    decode: dict[str, list[float]] = {name: [] for name in names}

    def timed(step: Callable[[], None], into: list[float]) -> None:
        began = clock()
        step()
        into.append((clock() - began) * 1e3)

    for turn in range(rounds + 1):
        for name in names if turn % 2 else names[::-1]:
            timed(models[name].prefill, prefill[name])
        for i in range(tokens):
            for name in names if i % 2 else names[::-1]:
                timed(models[name].decode, decode[name])
        if turn == 0:  # warm-up
            for times in (*prefill.values(), *decode.values()):
                times.clear()
    return {n: {"prefill_ms": min(prefill[n]), "decode_ms": float(np.median(decode[n]))} for n in names}


def size(path: Path) -> float:
    """MB of the model files (not of the tokenizer)."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in (".onnx", ".data", ".onnx_data")]
    return round(sum(p.stat().st_size for p in files) / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    results = Results("onnx_speed")
    with tempfile.TemporaryDirectory() as folder:
        paths = exports(Path(folder))
        length = len(PROMPT) + options.decode + 8
        models: dict[str, Contestant] = {n: Genai(p, options.threads, length) for n, p in paths.items()}
        if (file := q4_0(Path(folder))) is not None:
            paths["llama.cpp Q4_0"] = file
            models["llama.cpp Q4_0"] = LlamaCpp(file, options.threads, length)
        clock = time.process_time if options.threads == 1 else time.perf_counter
        times = race(models, options.decode, options.rounds, clock)
        base = times[BUILDER]
        for name, row in times.items():
            ratios = {
                f"{phase}_ratio": round(base[f"{phase}_ms"] / row[f"{phase}_ms"], 3) for phase in ("prefill", "decode")
            }
            found = {**{k: round(v, 2) for k, v in row.items()}, **ratios, "mb": size(paths[name])}
            results.add(f"{name}, {options.threads} thread", found)
            print(name, found, flush=True)


if __name__ == "__main__":
    main()
