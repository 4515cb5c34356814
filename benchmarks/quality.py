# SPDX-License-Identifier: Apache-2.0
"""How much of the float model survives: every method on the same tokens, WikiText-2, SmolLM2-135M.

    python benchmarks/quality.py                    all rows that are not in results/quality.json yet
    python benchmarks/quality.py --only dlqat-kd-3b rows whose key begins so
    python benchmarks/quality.py --again            known rows, too, and what they were before

Symmetric groups of 32, int8 embedding and head, float activations unless a row says a8. Trained on 41k
tokens of WikiText-2 *valid* (40 steps of 4 x 256); perplexity over 16 x 512 tokens of *test*, in float32,
of the folded weights. `held` is the same over valid text that no row trains on: what choices were made by.
Training on valid and testing on test is in-domain: cross entropy (ce) learns the text and can pass the
float model, KL to the float model (kd) only recovers. ARC-Easy and PIQA are out of domain (recovery.py).
Seconds are those of the process on the processor (OMP_NUM_THREADS=1: one core): others on the machine do not count. A row
measured in float32, for want of bf16, says so in `seconds_are`, and its seconds are not shown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import _autoround
from _common import ADAPTERS, Results, peak_gb, reset_peak, smollm2, text
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dlqat import adapter, source
from dlqat.recipe import BLOCKS, Recipe, Rule, portable
from dlqat.runtime_tests.eval import text_loss
from dlqat.source import Loaded
from dlqat.trainer import precision
from dlqat.trainer.data import training_data
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.layers.prepare import load, prepare, qat_layers
from dlqat.trainer.options import Options
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.start import Site
from dlqat.trainer.train import accelerator, train

WINDOWS, LENGTH = 16, 512
TOKENS = 40 * 4 * 256
"""What every trained row sees (three times as many where it says 120steps), and every calibrated start."""


@dataclass(frozen=True)
class Run:
    """One row: a start, and how it is trained from there (steps 0: not at all)."""

    bits: int
    options: Options = field(default_factory=Options)
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the block linears' rule."""
    activation_bits: int = 0
    init: str = "mse"
    autoround: bool = False
    """Rounded by AutoRound's own package instead of ours."""
    after: str = ""
    """Key of the row of AutoRound's that training starts from."""


WITHOUT_BF16 = "of a processor without bf16, which trains in float32: they do not count"
UNTRAINED = replace(Options(), steps=0)
CALIBRATED = replace(UNTRAINED, calibration_tokens=TOKENS)


def rows() -> Iterator[tuple[str, Run]]:
    """Key -> run, the ones that matter most first."""
    yield from _default()
    base = replace(Options(), block_distance=0.0, magnitude_rate=1e-2)  # with init mse: the default before _default
    high = replace(base, learning_rate=4e-3)  # of LoRA: the default until seeds 0 to 2 said otherwise
    for bits in (3, 4):
        for seed in (0, 1, 2):
            yield f"dlqat-kd-{bits}b-seed{seed}", Run(bits, replace(base, seed=seed))
    for bits, seed in ((3, 0), (3, 1), (3, 2), (4, 0), (4, 1)):
        yield f"dlqat-kd-lr4e-3-{bits}b-seed{seed}", Run(bits, replace(high, seed=seed))
    yield from _plain(high)
    for bits in (3, 4, 2):
        yield f"rtn-{bits}b", Run(bits, UNTRAINED)
        yield f"autoround-{bits}b", Run(bits, UNTRAINED, autoround=True)
        yield f"gptq-{bits}b", Run(bits, CALIBRATED, init="gptq")
        if bits == 2:
            yield "dlqat-kd-2b-seed0", Run(2, base)
        yield f"dlqat-kd-a8-{bits}b-seed0", Run(bits, base, {}, 8)
        yield f"dlqat-ce-{bits}b-seed0", Run(bits, replace(base, kd=0.0, ce=1.0))
        yield f"peqa-kd-{bits}b-seed0", Run(bits, base, {"rank": 0})
        yield f"fq_lora-kd-{bits}b-seed0", Run(bits, base, {"magnitude": False})
        yield f"l4q-kd-{bits}b-seed0", Run(bits, base, {"magnitude": False, "train_scales": True})
        yield f"gptq+dlqat-kd-{bits}b-seed0", Run(bits, replace(base, calibration_tokens=TOKENS), init="gptq")
        # A symmetric grid of 2 bits has no code for AutoRound's +2.
        grid = {"symmetric": False} if bits == 2 else {}
        yield f"autoround+dlqat-kd-{bits}b-seed0", Run(bits, base, grid, after=f"autoround-{bits}b")
        yield from _blocks(bits, base, high)
    short = replace(base, calibration_tokens=16384)
    for seed in (0, 1, 2):
        yield f"gptq16k+dlqat-kd-3b-seed{seed}", Run(3, replace(short, seed=seed), init="gptq")
    slow = replace(base, calibration_tokens=TOKENS, magnitude_rate=3e-3)
    yield "gptq+dlqat-kd-slow-4b-seed0", Run(4, slow, init="gptq")
    for bits in (3, 4):  # does LoRA pay when there is more to learn from?
        yield f"dlqat-kd-120steps-{bits}b-seed0", Run(bits, replace(base, steps=120))
        yield f"peqa-kd-120steps-{bits}b-seed0", Run(bits, replace(base, steps=120), {"rank": 0})
    yield "fq_lora-kd-lr4e-3-3b-seed0", Run(3, high, {"magnitude": False})


def _default() -> Iterator[tuple[str, Run]]:
    """The start that weighs inputs, with the blocks' distance in the loss, and without it; other rates and starts."""
    new = Options()
    short = replace(new, calibration_tokens=16384)
    for bits in (4, 3, 2):
        init = "blocks" if bits == 2 else "weighted"
        yield f"weighted-{bits}b", Run(bits, UNTRAINED, init="weighted")
        for seed in (0, 1, 2):
            yield f"dlqat-{bits}b-seed{seed}", Run(bits, replace(new, seed=seed), init=init)
        if bits == 2:
            yield "weighted+dlqat-2b-seed0", Run(2, new, init="weighted")
        yield f"dlqat-no-blocks-{bits}b-seed0", Run(bits, replace(new, block_distance=0.0), init=init)
        other = replace(new, magnitude_rate=1e-2 if bits == 4 else 3e-3)
        yield f"dlqat-{'fast' if bits == 4 else 'slow'}-{bits}b-seed0", Run(bits, other, init=init)
        yield f"gptq16k+dlqat-{bits}b-seed0", Run(bits, short, init="gptq")


def _plain(high: Options) -> Iterator[tuple[str, Run]]:
    """What mirrored grids are worth: 3 bits without them."""
    plain = {"mirrored": False}
    for seed in (0, 1, 2):
        yield f"dlqat-kd-lr4e-3-3b-plain-seed{seed}", Run(3, replace(high, seed=seed), plain)
    yield "rtn-3b-plain", Run(3, UNTRAINED, plain)
    yield "gptq-3b-plain", Run(3, CALIBRATED, plain, init="gptq")
    yield "peqa-kd-3b-plain-seed0", Run(3, high, {**plain, "rank": 0})
    yield "l4q-kd-lr4e-3-3b-plain-seed0", Run(3, high, {**plain, "magnitude": False, "train_scales": True})
    yield "dlqat-ce-lr4e-3-3b-plain-seed0", Run(3, replace(high, kd=0.0, ce=1.0), plain)
    blocks = replace(high, calibration_tokens=TOKENS)
    yield "blocks+dlqat-kd-lr4e-3-3b-plain-seed0", Run(3, blocks, plain, init="blocks")


def _blocks(bits: int, base: Options, high: Options) -> Iterator[tuple[str, Run]]:
    """The block-wise start: alone, and trained on at three rates."""
    base, high = replace(base, calibration_tokens=TOKENS), replace(high, calibration_tokens=TOKENS)
    yield f"blocks-{bits}b", Run(bits, CALIBRATED, init="blocks")
    yield f"blocks+dlqat-kd-{bits}b-seed0", Run(bits, base, init="blocks")
    yield f"blocks+dlqat-kd-lr4e-3-{bits}b-seed0", Run(bits, high, init="blocks")
    yield f"blocks+dlqat-kd-slow-{bits}b-seed0", Run(bits, replace(base, magnitude_rate=3e-3), init="blocks")
    if bits == 2:  # the grid that AutoRound's row of 2 bits has
        zero_points = {"symmetric": False}
        yield "blocks+dlqat-kd-2b-asymmetric-seed0", Run(2, base, zero_points, init="blocks")


def measure(run: Run, loaded: Loaded, keep: Path, start_from: Path | None = None) -> dict[str, Any]:
    """Start (or take what another row kept), train and evaluate; loaded.model is used up, what became of it is kept."""
    model, options = loaded.model, run.options
    examples = training_data.load([str(text("wikitext-2/valid.txt"))], loaded, training_data.DataPlan(256, 0), Path())
    # The end of valid is `held`: no row trains on it.
    examples = examples.first(len(examples) - (WINDOWS * LENGTH // 256 + 1))
    batches = Batches(examples, options.batch_size, options.seed)
    rules = (*portable(run.bits, 32, run.activation_bits).rules, Rule(BLOCKS, run.changes))
    began = time.process_time()
    if run.autoround:
        _autoround.autoround(model, loaded.tokenizer, run.bits, batches.calibration(TOKENS, 256))
        rules = tuple(rule for rule in rules if rule.match != BLOCKS)
    begin = by_name.parse(run.init)
    if start_from is None:
        wanted = options.calibration_tokens or begin.tokens
        begin.prepare(Site(model, Recipe(rules), options.seed, lambda: batches.calibration(wanted, 256)))
    else:
        prepare(model, Recipe(rules), options.seed)
        tensors = load_file(start_from)
        _autoround.start(qat_layers(model), tensors) if run.after else load(model, tensors)
    prepared = time.process_time()
    before: dict[str, float] = {}
    if run.init != "mse" and options.steps and start_from is None:  # what the start alone is worth
        before = {f"start_{split}": value for split, value in evaluate(model, loaded).items()}
    began_training = time.process_time()
    losses: list[float] = []
    if options.steps:
        with tempfile.TemporaryDirectory() as folder:
            runtime = accelerator(options)
            quiet = replace(options, save_every=0)
            train(model, batches, quiet, Path(folder), runtime, lambda row: losses.append(row.loss))
    trained, peak = time.process_time(), peak_gb()
    _keep(model, run, keep)
    return {
        "bits": run.bits,
        **({} if precision.fast_bf16("cpu") else {"seconds_are": WITHOUT_BF16}),
        "tokens": options.steps * options.batch_size * options.sequence_length,
        "start_seconds": round(prepared - began, 1),
        "train_seconds": round(trained - began_training, 1),
        "last_loss": losses[-1] if losses else None,
        "peak_gb": peak,
        **before,
        **evaluate(model, loaded),
    }


def _keep(model: PreTrainedModel, run: Run, path: Path) -> None:
    """What tells the row's model from the float one, for benchmarks/recovery.py."""
    layers = qat_layers(model).items()
    tensors = {f"{n}.{f}": t for n, layer in layers for f, t in [*layer.named_parameters(), *layer.named_buffers()]}
    found = {n: t for n, t in tensors.items() if n.rpartition(".")[2] not in ("weight", "bias")}
    rounded = {n: t for n, t in model.state_dict().items() if n.endswith("_proj.weight")} if run.autoround else {}
    adapter.write({**found, **rounded}, path)


def evaluate(model: PreTrainedModel, loaded: Loaded) -> dict[str, float]:
    """Perplexity on test and on the untrained end of valid, float32."""
    score = text_loss.of_model(model.eval())
    return {
        "test": text_loss.perplexity(score, tokens(loaded, "test")).perplexity,
        "held": text_loss.perplexity(score, tokens(loaded, "valid", tail=True)).perplexity,
    }


def tokens(loaded: Loaded, split: str, *, tail: bool = False) -> list[int]:
    """WINDOWS x LENGTH token ids from the beginning, or the end, of a split."""
    ids = loaded.tokenizer(text(f"wikitext-2/{split}.txt").read_text(encoding="utf-8")).input_ids
    return ids[-WINDOWS * LENGTH :] if tail else ids[: WINDOWS * LENGTH]


def started(run: Run, results: Results, keep: Path) -> tuple[Path | None, dict[str, float]]:
    """The adapters of the untrained row that is just the run's start, and what is known of it; None, {} if there is none."""
    key = run.after or f"{run.init}-{run.bits}b"
    row, adapters = results.rows.get(key), keep / f"{key}.safetensors"
    plain = not run.options.seed and not run.changes and run.options.calibration_tokens in (None, TOKENS)
    usable = run.after or (run.options.steps and plain)
    if row is None or not adapters.exists() or not usable:
        return None, {}
    return adapters, {"start_seconds": row["start_seconds"], "start_test": row["test"], "start_held": row["held"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="prefix of the rows to measure")
    parser.add_argument(
        "--keep", type=Path, default=ADAPTERS, help="folder for the adapters of the rows, as KEY.safetensors"
    )
    parser.add_argument("--again", action="store_true", help="measure known rows once more")
    arguments = parser.parse_args()
    wanted, keep = arguments.only, arguments.keep
    results = Results("quality")
    origin = source.resolve(smollm2())
    if "float" not in results.rows:
        loaded = source.load(origin)
        results.add("float", evaluate(loaded.model, loaded))
    for key, run in rows():
        before = results.rows.get(key)
        if (before and not arguments.again) or not key.startswith(wanted):
            continue
        start_from, known = started(run, results, keep)
        if run.after and start_from is None:
            print(f"{key}: {keep} holds nothing of {run.after}; measure that row first")
            continue
        reset_peak()
        row = measure(run, source.load(origin), keep / f"{key}.safetensors", start_from)
        results.add(key, row | known)
        print(key, results.rows[key], *(["before:", before] if before else []), flush=True)


if __name__ == "__main__":
    main()
