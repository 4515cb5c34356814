# SPDX-License-Identifier: Apache-2.0
"""What a base of one byte a weight costs in perplexity: SmolLM2-135M, the same short training with and without.

    python benchmarks/base_bits.py [--steps 12] [--sequences 4] [--length 256]

KL to the float model on WikiText-2 *valid*; perplexity on the beginning of *test*, in float32 of the trained
weights. With base_bits = 8 the teacher is the one-byte base too: nothing else is in memory. `teacher` is its
perplexity. Short runs: what is compared is the difference of two equal runs, not their quality.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from _common import Results, smollm2, text

from dlqat import source
from dlqat.recipe import BLOCKS, Recipe, Rule, portable
from dlqat.runtime_tests.eval import text_loss
from dlqat.trainer.data import training_data
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.layers.prepare import prepare, qat_layers
from dlqat.trainer.layers.qat import QATLinear, teacher
from dlqat.trainer.options import Options
from dlqat.trainer.train import accelerator, train


def measure(bits: int, base_bits: int, options: Options, windows: int) -> dict[str, Any]:
    """Train and evaluate one model; perplexities over windows x 512 tokens."""
    loaded = source.load(source.resolve(smollm2()))
    model = loaded.model
    plan = training_data.DataPlan(options.sequence_length, 0)
    examples = training_data.load([str(text("wikitext-2/valid.txt"))], loaded, plan, Path())
    prepare(model, Recipe((*portable(bits, 32, 0).rules, Rule(BLOCKS, {"base_bits": base_bits}))), options.seed)
    for layer in qat_layers(model).values():
        if isinstance(layer, QATLinear):
            layer.shrink_base()
    ids = loaded.tokenizer(text("wikitext-2/test.txt").read_text(encoding="utf-8")).input_ids[: windows * 512]

    def perplexity() -> float:
        with torch.no_grad():
            return text_loss.perplexity(text_loss.of_model(model.eval()), ids).perplexity

    with teacher(model):
        of_teacher = perplexity()
    before = perplexity()
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        batches = Batches(examples, options.batch_size, options.seed)
        train(model, batches, options, Path(folder), accelerator(options), lambda row: losses.append(row.loss))
    row = {"teacher": of_teacher, "before": before, "trained": perplexity(), "losses": losses}
    return {**row, "steps": options.steps, "tokens_a_step": options.batch_size * options.sequence_length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("steps", 12), ("sequences", 4), ("length", 256), ("windows", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    args = parser.parse_args()
    options = Options(steps=args.steps, batch_size=args.sequences, sequence_length=args.length, save_every=0)
    results = Results("base_bits")
    for bits in args.bits:
        for base_bits in (0, 8):
            key = f"int{bits}-base{base_bits or 'float'}-{args.steps}x{args.sequences}x{args.length}"
            if key not in results.rows:
                results.add(key, measure(bits, base_bits, options, args.windows))
                print(key, results.rows[key], flush=True)


if __name__ == "__main__":
    main()
