# SPDX-License-Identifier: Apache-2.0
"""Training on a GPU: is it the training of the CPU, and what does a step of a 1B and an 8B model take?

    python benchmarks/gpu_steps.py agree MODEL.gguf TEXT [--results FOLDER]    SmolLM2 trained by dlqat-train on the GPU
                 (if there is one) and on the CPU: the losses side by side; every weight folded on both, and made by the
                 kernels. Run it on several machines into one FOLDER: what is there is not run again
    python benchmarks/gpu_steps.py shapes [--results FOLDER]     a step of DL-QAT beside PEFT's LoRA and torchao's QAT,
                 random weights in the shapes of Llama 3.2 1B and Llama 3.1 8B: milliseconds, peak memory
    python benchmarks/gpu_steps.py profile [--results FOLDER]    the 20 kernels that take most of a step
    --smoke      the same code on a tiny model, without a GPU in Triton's interpreter: measures nothing

Contestants of `shapes` run one after the other (two 8B models do not fit side by side); each row is the median of five
steps after two, with gradient checkpointing, bf16 autocast and AdamW.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import Results, command

STEPS = 30
LLAMA = {"num_key_value_heads": 8, "num_attention_heads": 32, "vocab_size": 128256, "max_position_embeddings": 8192}
SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "llama-3.1-8b": ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}, (2, 2048)),
    "llama-3.2-1b": (
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
        (4, 2048),
    ),
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 256}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agree", "shapes", "profile"))
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu and not options.smoke and options.what != "agree":
        print("benchmarks/gpu_steps.py: no GPU here, nothing is measured (--smoke tries the code on a CPU)")
        return 2
    if options.smoke and not gpu:
        os.environ |= {"TRITON_INTERPRET": "1", "DLQAT_KERNELS": "triton"}  # before the kernels are imported
    results = Results("gpu", options.results)
    if options.what == "agree":
        agree(*options.files, results, gpu)
    elif options.what == "profile":
        profile(results, gpu)
    else:
        shapes(results, gpu)
    return 0


def agree(model: Path, text: Path, results: Results, gpu: bool) -> None:
    """Losses of every step: GPU in bf16 and float32, CPU in float32; and the integers of the first."""
    with tempfile.TemporaryDirectory() as work:
        for name in ("gpu, bf16", "gpu, fp32", "cpu, fp32") if gpu else ("cpu, fp32",):
            if f"agree: {name}" in results.rows:
                continue
            folder = Path(work) / name.replace(", ", "-")
            row = trained(model, text, folder, name)
            results.add(f"agree: {name}", row)
            print(name, row, flush=True)
            if name == "gpu, bf16" and "failed" not in row:
                row = folds(folder, "cuda")
                results.add("agree: fold on GPU, fold on CPU, kernels", row)
                print(row, flush=True)


def trained(model: Path, text: Path, folder: Path, name: str) -> dict[str, Any]:
    """What dlqat-train does in STEPS steps on `name` = device, precision."""
    device, precision = name.split(", ")
    words = command("trainer.cli", model, "-o", folder, "--data", text, "--steps", str(STEPS), "--no-activations",
                    "--precision", precision, "--save-every", "0")  # fmt: skip
    own = os.environ | ({} if device == "gpu" else {"CUDA_VISIBLE_DEVICES": ""})
    began = time.perf_counter()
    done = subprocess.run(words, env=own, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr[-500:]}
    rows = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "tokens_per_second": round(statistics.median(row["tokens_per_second"] for row in rows)),
        "losses": [round(row["loss"], 6) for row in rows],
    }


def folds(model_dir: Path, device: str) -> dict[str, Any]:
    """Codes of every adapter folded on `device` against the CPU's, and W' of the kernels against dense(fold) there."""
    from dataclasses import replace

    from dlqat import adapter, recipe, source
    from dlqat.folded import dense
    from dlqat.model_dir import ADAPTERS
    from dlqat.trainer.kernels import choose

    record = json.loads((model_dir / "dlqat.json").read_text())
    weights = source.weights(source.resolve(record["source"]))
    names = [n.removesuffix(".weight") for n in weights if n.endswith(".weight") and len(weights[n].shape) == 2]
    specs = recipe.parse(record["recipe"], "dlqat.json").layers({n: tuple(weights[f"{n}.weight"].shape) for n in names})
    adapters = adapter.read(model_dir / ADAPTERS, {n: (s.grid, s.scaling) for n, s in specs.items()})
    count = differ = kernel = 0
    furthest = 0.0
    for name, here in adapters.items():
        weight = weights[f"{name}.weight"]
        there = replace(here, **{k: v.to(device) for k, v in vars(here).items() if isinstance(v, torch.Tensor)})
        on_gpu, on_cpu = adapter.fold(weight.to(device), there), adapter.fold(weight, here)
        moved = on_gpu.codes.cpu() != on_cpu.codes
        exact = adapter.latent(weight, here).double().view(*here.scales.shape, -1)
        exact = (exact / adapter.grid_scales(here)[..., None].double()).view(weight.shape)
        distance = ((exact - exact.floor()) - 0.5).abs()[moved]
        made = choose.choose(torch.device(device)).weight_forward(weight.to(device), there, torch.float32)
        kernel += int((made != dense(on_gpu)).sum())
        count, differ = count + weight.numel(), differ + int(moved.sum())
        furthest = max(furthest, float(distance.max()) if len(distance) else 0.0)
    return {
        "weights": count,
        "codes that differ between GPU and CPU": differ,
        "furthest of these from a tie, in steps": furthest,
        "weights whose kernel made another code than fold on the same device": kernel,
    }


def build(shape: dict[str, Any], device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        net = LlamaForCausalLM(LlamaConfig(**shape))
    return net.to(torch.bfloat16 if device == "cuda" else torch.float32)


def dlqat(kd: float, ce: float, base_bits: int = 0) -> Callable[[Any], Any]:
    def make(net: Any) -> Any:
        from dlqat.recipe import BLOCKS, Recipe, Rule, portable
        from dlqat.trainer import train
        from dlqat.trainer.distill import Mix
        from dlqat.trainer.layers.prepare import prepare, qat_layers
        from dlqat.trainer.layers.qat import QATLinear
        from dlqat.trainer.options import Options

        blocks: dict[str, Any] = {"rank": 16, **({"base_bits": 8} if base_bits else {})}
        prepare(net, Recipe((*portable(4, 32, 0).rules, Rule(BLOCKS, blocks))))
        for layer in qat_layers(net).values():
            if isinstance(layer, QATLinear):
                layer.shrink_base()
        net.to(next(net.parameters()).device).eval()
        train.checkpoint_blocks(net)
        loss = train.Loss(net, Mix(kd, ce))
        return (lambda ids: loss(ids, ids) / ids[:, 1:].numel()), train.optimizer(loss, Options())

    return make


def plain(wrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A model of others on transformers' own cross entropy."""

    def make(net: Any) -> Any:
        net = wrap(net)
        net.train()
        (getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable)()
        net.enable_input_require_grads()
        adam = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-4)
        return (lambda ids: net(input_ids=ids, labels=ids, use_cache=False).loss), adam

    return make


def lora(net: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(net, LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))


def torchao(net: Any) -> Any:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    config = QATConfig(
        weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True), step="prepare"
    )
    quantize_(net, config, lambda module, name: isinstance(module, torch.nn.Linear) and name.endswith("_proj"))
    return net


CONTESTANTS = {
    "PEFT LoRA ce": plain(lora),
    "dlqat kd": dlqat(1.0, 0.0),
    "dlqat ce": dlqat(0.0, 1.0),
    "dlqat kd, base of 8 bits": dlqat(1.0, 0.0, 8),
    "torchao QAT ce, all weights": plain(torchao),
}
OF_8B = ("PEFT LoRA ce", "dlqat kd")
"""What there is time for."""


def shapes(results: Results, gpu: bool) -> None:
    for shape, (config, batch) in (SHAPES if gpu else {"tiny": (TINY, (1, 16))}).items():
        for name, make in CONTESTANTS.items():
            if "8b" in shape and name not in OF_8B:
                continue
            key = f"step: {shape}, {batch[0]} x {batch[1]} tokens, {name}"
            if key in results.rows:
                continue
            try:
                row = step({**LLAMA, **config}, batch, make, gpu)
            except Exception as error:  # noqa: BLE001 a peer of another version must not end the run
                row = {"failed": f"{type(error).__name__}: {error}"[:300]}
            results.add(key, row)
            print(key, row, flush=True)
            gc.collect()
            if gpu:
                torch.cuda.empty_cache()


def step(config: dict[str, Any], batch: tuple[int, int], make: Callable[[Any], Any], gpu: bool) -> dict[str, float]:
    """Milliseconds and peak bytes of a step (forward, backward, AdamW); seconds that the preparation takes."""
    one, prepared = _one(config, batch, make, gpu)
    for _ in range(2):
        one()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    for _ in range(5 if gpu else 1):
        began = time.perf_counter()
        one()
        if gpu:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    ms = statistics.median(times)
    peak = torch.cuda.max_memory_allocated() if gpu else 0
    speed = round(1e3 * batch[0] * batch[1] / ms)
    return {"ms": round(ms, 1), "tokens_per_second": speed, "peak_bytes": peak, "prepare_seconds": round(prepared, 1)}


def _one(
    config: dict[str, Any], batch: tuple[int, int], make: Callable[[Any], Any], gpu: bool
) -> tuple[Callable[[], None], float]:
    device = "cuda" if gpu else "cpu"
    net = build(config, device)
    began = time.perf_counter()
    loss, adam = make(net)
    prepared = time.perf_counter() - began
    ids = torch.randint(0, config["vocab_size"], batch, device=device)

    def one() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=gpu):
            value = loss(ids)
        value.backward()
        adam.step()
        adam.zero_grad()

    return one, prepared


def profile(results: Results, gpu: bool) -> None:
    """One kd step of the 8B shape (and of 1B), by kernel."""
    from torch.profiler import ProfilerActivity, profile

    for shape, (config, batch) in (SHAPES if gpu else {"tiny": (TINY, (1, 16))}).items():
        one, _ = _one({**LLAMA, **config}, batch, dlqat(1.0, 0.0), gpu)
        one()
        kind = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
        with profile(activities=[kind]) as seen:
            one()
            if gpu:
                torch.cuda.synchronize()
        what = "self_device_time_total" if gpu else "self_cpu_time_total"
        rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, what))
        whole = sum(getattr(row, what) for row in rows)
        top = {row.key[:120]: [row.count, round(getattr(row, what) / 1e3, 2)] for row in rows[:20]}
        results.add(f"profile: {shape}, kernel -> calls, ms", {"all, ms": round(whole / 1e3, 1), **top})
        for key, row in [*top.items()][:14]:
            print(shape, row, key[:90], flush=True)
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
