# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on a GPU: bandwidth, the layer beside its three products and its peers, memory, a 7B step.

    python benchmarks/kernels.py            everything; results/kernels.json, one row at a time
    python benchmarks/kernels.py --smoke    the same code on tiny shapes, where there is no GPU in Triton's
                                            interpreter: shows that it runs, writes nothing, measures nothing

Candidates of a row are timed in turns, so that a clock that drifts drifts for all; a row holds medians in
milliseconds and the peak of memory over what was there before the step, in bytes (the model row: over nothing). Without a GPU: one line, exit status 2.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

GPU_NEEDED = "benchmarks/kernels.py: no GPU here, nothing is measured (--smoke tries the code on a CPU)"
SHAPES = {
    "llama-7b": [(4096, 4096), (11008, 4096), (4096, 11008)],
    "llama-3-8b": [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)],
    "smollm2-135m": [(576, 576), (192, 576), (1536, 576), (576, 1536)],
}
TOKENS, ROUNDS = (512, 2048, 8192), 25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
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

        results = Results("kernels")
        if key not in results.rows:
            results.add(key, {"gpu": torch.cuda.get_device_name(), **measure()})
            print(key, results.rows[key], flush=True)
    return 0


def rows(device: str, smoke: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Key -> what measures it."""
    if smoke:
        yield "bandwidth 64x128", lambda: bandwidth(64, 128, 8, device, 1)
        yield "layer 64x128, 8 tokens", lambda: layer(64, 128, 8, device, 1)
        yield "model", lambda: model(device, tiny=True)
        return
    for name, shapes in SHAPES.items():
        for out, inputs in shapes:
            for tokens in TOKENS:
                where = f"{name} {out}x{inputs}, {tokens} tokens"
                yield f"bandwidth {where}", lambda o=out, i=inputs, t=tokens: bandwidth(o, i, t, device, ROUNDS)
                yield f"layer {where}", lambda o=out, i=inputs, t=tokens: layer(o, i, t, device, ROUNDS)
    yield "model 7b, 1 x 2048 tokens, gradient checkpointing", lambda: model(device, tiny=False)


def timed(candidates: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and peak bytes of each, in turns; the first two turns only warm up."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in candidates}
    peak: dict[str, float] = {}
    for turn in range(rounds + 2):
        for name, work in candidates.items():
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                work()
                end.record()
                torch.cuda.synchronize()
                took, peak[name] = start.elapsed_time(end), torch.cuda.max_memory_allocated() - before
            else:
                began = time.perf_counter()
                work()
                took, peak[name] = 1e3 * (time.perf_counter() - began), 0.0
            if turn >= 2 or rounds == 1:
                times[name].append(took)
    return {name: {"ms": statistics.median(t), "peak_bytes": peak[name]} for name, t in times.items()}


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

    from dlqat.trainer.kernels import triton

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

        def step(f: Callable[[Any], Any], name: str = name) -> None:
            os.environ["DLQAT_KERNELS"] = "reference" if name == "dlqat reference" else "triton"
            triton.FUSED_TOKENS = 1 << 30 if name == "dlqat fused" else 0
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


def model(device: str, *, tiny: bool) -> dict[str, Any]:
    """(e) A random Llama of 7B shape: one KD step with gradient checkpointing and AdamW, 1 x 2048 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dlqat.recipe import BLOCKS, Recipe, Rule, portable
    from dlqat.trainer.distill import Mix
    from dlqat.trainer.layers.prepare import prepare
    from dlqat.trainer.train import Loss

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**(shape | {"vocab_size": 256} if tiny else {"max_position_embeddings": 4096}))
    with torch.device(device):
        net = LlamaForCausalLM(config).to(torch.float32 if tiny else torch.bfloat16)
    prepare(net, Recipe((*portable(4, 32, 0).rules, Rule(BLOCKS, {"rank": 16}))))
    net.to(device)
    net.train()
    net.activation_checkpointing_enable()
    loss = Loss(net, Mix())
    adam = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], 1e-4)
    ids = torch.randint(0, config.vocab_size, (1, 16 if tiny else 2048), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=not tiny):
            value = loss(ids, ids)
        value.backward()
        adam.step()
        adam.zero_grad()

    row = timed({"step": step}, device, 1 if tiny else 5)["step"]
    if device == "cuda":
        row["peak_bytes"] += torch.cuda.memory_allocated()
    return {**row, "tokens_per_second": 1e3 * ids.numel() / row["ms"]}


if __name__ == "__main__":
    sys.exit(main())
