# SPDX-License-Identifier: Apache-2.0
"""Is it the float model again? Distance to it, and tasks that no training text here resembles, for rows of quality.py.

    python benchmarks/quality.py && python benchmarks/recovery.py [ADAPTERS]     rows of which quality.py kept adapters
    python benchmarks/recovery.py --only dlqat-kd-3b                             those whose key begins so

`kl`: mean KL(float || row) in nats over 16 x 512 tokens of WikiText-2 test, under bf16 autocast (float32 where a
processor has no bf16). Perplexity can
fall because a model learns the domain, or grows less sure of itself; this distance cannot. ARC-Easy and PIQA: the
accuracy of the first QUESTIONS questions (lm_eval, local files), standard error 3.5 and 3.4 points, so rows that
differ by less do not differ; all rows answer the same questions.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from _common import ADAPTERS, Results, smollm2, text
from quality import LENGTH, Run, rows, tokens
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlqat import source
from dlqat.recipe import BLOCKS, Recipe, Rule, portable
from dlqat.trainer import precision
from dlqat.trainer.layers import prepare

QUESTIONS = 200
FILES = {
    "arc_easy": ("arc/arc_easy.yaml", "test", "arc_easy_test.jsonl"),
    "piqa": ("piqa/piqa.yaml", "validation", "piqa_validation.jsonl"),
}


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """acc in per cent."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, device="cpu")
    found = lm_eval.simple_evaluate(
        wrapped, tasks=[_task(name) for name in FILES], limit=QUESTIONS, bootstrap_iters=0, verbosity="ERROR"
    )
    assert found is not None
    return {name: round(100 * found["results"][name]["acc,none"], 2) for name in FILES}


def _task(name: str) -> dict[str, Any]:
    import lm_eval

    config, split, file = FILES[name]
    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / config).read_text(encoding="utf-8"))
    return {
        **task,
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(text(file))}},
        "training_split": None,
        "validation_split": split if split == "validation" else None,
    }


@torch.no_grad()
def distance(model: PreTrainedModel, reference: PreTrainedModel, ids: list[int]) -> float:
    """Mean KL(reference || model) over windows of LENGTH tokens."""
    total, count = 0.0, 0
    for batch in torch.tensor(ids).view(-1, 2, LENGTH):
        with precision.autocast("cpu"):
            own, wanted = (m(batch).logits[:, :-1].float().log_softmax(-1) for m in (model, reference))
        total += float(F.kl_div(own, wanted, log_target=True, reduction="sum"))
        count += batch[:, 1:].numel()
    return total / count


def restore(model: PreTrainedModel, run: Run, path: Path) -> None:
    """Bring a float model to what quality.py kept of the row."""
    tensors = load_file(path)
    rules = [*portable(run.bits, 32, run.activation_bits).rules, Rule(BLOCKS, run.changes)]
    if run.autoround:
        model.load_state_dict(tensors, strict=False)
        rules = [rule for rule in rules if rule.match != BLOCKS]
    prepare.prepare(model, Recipe(tuple(rules)))
    prepare.load(model, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path, nargs="?", default=ADAPTERS, help="what quality.py has kept")
    parser.add_argument("--only", default="", help="prefix of the rows to measure")
    parser.add_argument("--distance", action="store_true", help="only kl")
    arguments = parser.parse_args()
    folder: Path = arguments.adapters
    if not any(folder.glob("*.safetensors")):
        print(f"{folder} holds no adapters, so there is nothing to measure; quality.py keeps those of rows it trains")
        return
    results, origin = Results("recovery"), source.resolve(smollm2())
    reference = source.load(origin)
    ids = tokens(reference, "test")
    if "float" not in results.rows:
        results.add("float", {"kl": 0.0, **accuracy(reference.model.eval(), reference.tokenizer)})
    for key, run in rows():
        path = folder / f"{key}.safetensors"
        if not key.startswith(arguments.only) or "piqa" in results.rows.get(key, {}) or not path.exists():
            continue
        loaded = source.load(origin)
        restore(loaded.model, run, path)
        model = loaded.model.eval()
        kl = distance(model, reference.model.eval(), ids)
        results.add(key, {"kl": round(kl, 4), **({} if arguments.distance else accuracy(model, loaded.tokenizer))})
        print(key, results.rows[key], flush=True)


if __name__ == "__main__":
    main()
