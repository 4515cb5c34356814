# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on a GPU: bandwidth, and the layer beside its three products and its peers.

    python benchmarks/kernels.py            everything; results/kernels.json, one row at a time, the most telling first
    python benchmarks/kernels.py --smoke    the same code on tiny shapes, where there is no GPU in Triton's
                                            interpreter: shows that it runs, writes nothing, measures nothing

A row holds medians in milliseconds, of the GPU alone and with the launches from Python (a small layer is launched
slower than it computes), and the peak of memory over what was there before the step, in bytes. Whole models: gpu_steps.py.
Without a GPU: one line, exit status 2.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GPU_NEEDED = "benchmarks/kernels.py: no GPU here, nothing is measured (--smoke tries the code on a CPU)"
SHAPES = {
    "llama-7b": [(4096, 4096), (11008, 4096), (4096, 11008)],
    "llama-3-8b": [(1024, 4096), (14336, 4096), (4096, 14336)],
    "smollm2-135m": [(576, 576), (192, 576), (1536, 576), (576, 1536)],
}
TOKENS, ROUNDS = (4096, 1024, 2048, 8192), 11
ONCE, COMPILED = ("textbook, torch.compile", "dlqat reference"), (4096, 4096, 4096)
"""These take many seconds for each shape: measured on one."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    smoke = options.smoke
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        if not smoke:
            print(GPU_NEEDED)
            return 2
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
    os.environ["DLQAT_KERNELS"] = "triton"
    for key, measure in rows(device, smoke):
        if smoke:
            print(key, measure())
            continue
        from _common import Results

        results = Results("kernels", options.results)
        if key not in results.rows:
            results.add(key, {"gpu": torch.cuda.get_device_name(), **measure()})
            print(key, results.rows[key], flush=True)
    return 0


def rows(device: str, smoke: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Key -> what measures it."""
    if smoke:
        yield "bandwidth 64x128", lambda: bandwidth(64, 128, 8, device, 1)
        yield "layer 64x128, 8 tokens", lambda: layer(64, 128, 8, device, 1)
        return
    for name, shapes in SHAPES.items():
        for out, inputs in shapes:
            where = f"{name} {out}x{inputs}"
            yield f"bandwidth {where}", lambda o=out, i=inputs: bandwidth(o, i, 2048, device, ROUNDS)
        for tokens in TOKENS:
            for out, inputs in shapes:
                where = f"{name} {out}x{inputs}, {tokens} tokens"
                yield f"layer {where}", lambda o=out, i=inputs, t=tokens: layer(o, i, t, device, ROUNDS)


def timed(candidates: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Of each candidate: ms on the GPU (a CUDA graph of many runs: nothing of Python in it), eager_ms with the launches
    from Python (in turns, the first two only warm up), and the peak bytes of a run."""
    import torch
    from triton.testing import do_bench_cudagraph

    times: dict[str, list[float]] = {name: [] for name in candidates}
    peak: dict[str, float] = {}
    for turn in range(rounds + 2):
        for name, work in candidates.items():
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
                peak[name] = torch.cuda.max_memory_allocated() - before
            if turn >= 2 or rounds == 1:
                times[name].append(1e3 * (time.perf_counter() - began))
    found: dict[str, dict[str, Any]] = {}
    for name, work in candidates.items():
        eager = statistics.median(times[name])
        try:
            ms = do_bench_cudagraph(work, rep=15, return_mode="median") if device == "cuda" else eager
        except Exception as error:  # noqa: BLE001 a peer that no graph can hold must not end the run
            print(f"{name}: no CUDA graph: {error}".splitlines()[0])
            ms = eager
        found[name] = {"ms": ms, "eager_ms": eager, "peak_bytes": peak.get(name, 0)}
    return found


def bandwidth(out: int, inputs: int, tokens: int, device: str, rounds: int) -> dict[str, Any]:
    """(a) Each kernel's bytes a second over those of a copy of the same weight."""
    import torch
    from _layers import GROUP, dlqat

    from dlqat.trainer.kernels import triton

    m = dlqat(out, inputs, device)
    weight, adapter = m.weight.detach(), m.adapter()
    g, into = torch.randn_like(weight), torch.empty_like(weight)
    x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
    size, small = weight.numel(), 8 * weight.numel() // GROUP  # s and m
    low_rank = 4 * m.spec.rank * (out + inputs)
    moved = {
        "copy": 4 * size,
        "forward": 4 * size + small + low_rank,
        "backward": 6 * size + small + small // 2 + 2 * low_rank,
        "activation": 4 * x.numel(),
    }
    found = timed(
        {
            "copy": lambda: into.copy_(weight),
            "forward": lambda: triton.weight_forward(weight, adapter, torch.bfloat16),
            "backward": lambda: triton.weight_backward(weight, adapter, g, torch.bfloat16),
            "activation": lambda: triton.fake_quant(x),
        },
        device,
        rounds,
    )
    rate = {name: moved[name] / row["ms"] for name, row in found.items()}
    return {name: {**row, "of_copy": rate[name] / rate["copy"]} for name, row in found.items()}


def layer(out: int, inputs: int, tokens: int, device: str, rounds: int) -> dict[str, Any]:
    """(b, c, d) Forward and backward of a layer over the three bare products, beside its peers; a peer that
    fails says why in its place."""
    import torch
    from _layers import layers, linear

    x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(tokens, out, device=device, dtype=torch.bfloat16)
    bare = linear(out, inputs, device).weight.detach()
    work: dict[str, Callable[[], object]] = {
        "three products": lambda: (x.detach() @ bare.T, dy @ bare, dy.T @ x.detach())
    }
    failed: dict[str, Any] = {}
    if device == "cpu":  # the interpreter's tl.dot cannot multiply bf16
        x, dy = x.detach().float().requires_grad_(), dy.float()
        bare = bare.float()
    for name, make in layers().items():
        if name in ONCE and device == "cuda" and (out, inputs, tokens) != COMPILED:
            continue

        def step(f: Callable[[Any], Any], name: str = name) -> None:
            os.environ["DLQAT_KERNELS"] = "reference" if name == "dlqat reference" else "triton"
            f(x).backward(dy)
            x.grad = None

        try:
            made = make(out, inputs, device)
            if device == "cpu" and isinstance(made, torch.nn.Module):
                made = made.float()
            step(made)
        except Exception as error:  # noqa: BLE001 a peer of another version must not end the run
            failed[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
            continue
        work[name] = lambda f=made, s=step: s(f)
    os.environ["DLQAT_KERNELS"] = "triton"
    found = timed(work, device, rounds)
    base = found["three products"]["ms"]
    return {**{name: {**row, "of_products": row["ms"] / base} for name, row in found.items()}, **failed}


if __name__ == "__main__":
    sys.exit(main())
