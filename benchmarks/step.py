# SPDX-License-Identifier: Apache-2.0
"""One training step: time and memory of DL-QAT beside PEFT's LoRA (no quantization), NNCF's FQ_LORA and torchao's QAT.

    python benchmarks/step.py [--threads 1 2]

SmolLM2-135M, 4 x 256 tokens a step, bf16 autocast, AdamW, all linears of the blocks: int4 groups of 32, rank
16. torchao's QAT (QATConfig) trains all weights; it offers no LoRA of its own. NNCF's has the head in 8 bits besides. Every contestant is a process
of its own, so that its peak memory is its own; they go one after the other, twice, the second time in reverse.
On one thread time is that of the process on the processor, the median of all steps but a process's first; on more it
is the wall clock, the fastest step: others on the machine can only make it slower.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from _common import Results, smollm2, text
from _step_table import LORA
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlqat import source
from dlqat.recipe import BLOCKS, Recipe, Rule, portable
from dlqat.trainer import train
from dlqat.trainer.distill import Mix
from dlqat.trainer.layers.prepare import prepare
from dlqat.trainer.options import Options

BATCH, LENGTH, RANK, STEPS = 4, 256, 16, 3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Step = Callable[[Tensor], None]


def dlqat(mix: Mix, activation_bits: int = 0) -> Callable[[PreTrainedModel], Step]:
    def make(model: PreTrainedModel) -> Step:
        prepare(model, Recipe((*portable(4, 32, activation_bits).rules, Rule(BLOCKS, {"rank": RANK}))))
        loss = train.Loss(model, mix)
        adam = train.optimizer(loss, Options())
        return lambda ids: _step(lambda: loss(ids, ids) / ids[:, 1:].numel(), adam)

    return make


def lora(model: PreTrainedModel) -> Step:
    from peft import LoraConfig, get_peft_model

    return _plain(get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS)))


def torchao(activation_bits: int = 0) -> Callable[[PreTrainedModel], Step]:
    def make(model: PreTrainedModel) -> Step:
        from torchao.quantization import quantize_
        from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

        weights = IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True)
        inputs = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False) if activation_bits else None
        quantize_(
            model,
            QATConfig(weight_config=weights, activation_config=inputs, step="prepare"),
            lambda module, name: isinstance(module, nn.Linear) and name.endswith("_proj"),
        )
        return _plain(model)

    return make


def nncf(model: PreTrainedModel) -> Step:
    from _layers import fq_lora

    model.config.use_cache = False
    return _plain(fq_lora(model.requires_grad_(False), {"input_ids": torch.zeros(1, 8, dtype=torch.long)}))


def _plain(model: nn.Module) -> Step:
    """A step on transformers' own cross entropy."""
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    return lambda ids: _step(lambda: model(input_ids=ids, labels=ids, use_cache=False).loss, adam)


def _step(loss: Callable[[], Tensor], adam: torch.optim.Optimizer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        value = loss()
    value.backward()
    nn.utils.clip_grad_norm_([p for group in adam.param_groups for p in group["params"]], 1.0)
    adam.step()
    adam.zero_grad()


CONTESTANTS = {
    LORA: lora,
    "dlqat ce": dlqat(Mix(kd=0.0, ce=1.0)),
    "dlqat kd": dlqat(Mix()),
    "dlqat ce, int8 activations": dlqat(Mix(kd=0.0, ce=1.0), 8),
    "NNCF FQ_LORA": nncf,
    "torchao QAT": torchao(),
    "torchao QAT, int8 activations": torchao(8),
}


def work(name: str, threads: int) -> None:
    """A contestant's process: prints the seconds of each step, then the peak memory in MB."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    loaded = source.load(source.resolve(smollm2()))
    step = CONTESTANTS[name](loaded.model)
    ids = loaded.tokenizer(text("wikitext-2/valid.txt").read_text(encoding="utf-8")).input_ids
    for batch in torch.tensor(ids[: (STEPS + 1) * BATCH * LENGTH]).view(-1, BATCH, LENGTH):
        began = clock()
        step(batch)
        print("seconds", clock() - began, flush=True)
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def measure(name: str, threads: int) -> tuple[list[float], float]:
    """Seconds of the steps but the first, and peak MB, of one process."""
    command = [sys.executable, __file__, "--work", name, "--threads", str(threads)]
    own = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=own)
    words = [line.split() for line in done.stdout.splitlines()]
    seconds = [float(w[1]) for w in words if w[:1] == ["seconds"]]
    peak = next(float(w[1]) for w in words if w[:1] == ["peak"])
    print(name, seconds, peak, flush=True)
    return seconds[1:], peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--only", default="", help="part of the names of those to measure again, beside a LoRA of their own run"
    )
    options = parser.parse_args()
    if options.work:
        work(options.work, options.threads[0])
        return
    for threads in options.threads:
        compare(threads, [name for name in CONTESTANTS if name == LORA or options.only in name])


def compare(threads: int, names: list[str]) -> None:
    """The contestants on so many threads, as rows. Each keeps LoRA's figures of its own run beside its ratios: a later
    run of some contestants (--only) does not take the place of the LoRA that the others were compared with."""
    seen = {key: ([], []) for key in names}
    for order in (names, names[::-1]):
        for key in order:
            seconds, peak = measure(key, threads)
            seen[key][0].extend(seconds)
            seen[key][1].append(peak)
    results, lora_row = Results("step"), _row(*seen[LORA], threads)
    for key in names if names == [*CONTESTANTS] else [name for name in names if name != LORA]:
        row = _row(*seen[key], threads)
        ratios = {
            "speed": round(row["tokens_per_second"] / lora_row["tokens_per_second"], 3),
            "peak_rss": round(row["peak_rss_mb"] / lora_row["peak_rss_mb"], 3),
        }
        name = f"{key}, {threads} thread{'s'[: threads > 1]}"
        results.add(name, {**row, "ratio_to_lora": ratios, "lora_of_this_run": lora_row})


def _row(seconds: list[float], peaks: list[float], threads: int) -> dict[str, float]:
    typical: Callable[[list[float]], float] = median if threads == 1 else min
    return {"tokens_per_second": round(BATCH * LENGTH / typical(seconds), 1), "peak_rss_mb": round(max(peaks))}


if __name__ == "__main__":
    main()
