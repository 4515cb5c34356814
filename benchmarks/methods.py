# SPDX-License-Identifier: Apache-2.0
"""The field's compression methods on one road: WikiText-2 perplexity over the bits that a file really takes.

    python benchmarks/methods.py              all rows that are not in results/methods.json yet, and the plot
    python benchmarks/methods.py --only nm    rows whose key begins so
    python benchmarks/methods.py --tasks      ARC-Easy and PIQA of the rows that have none yet
    python benchmarks/methods.py --plot       only draw the plot (benchmarks/table.py writes the table of docs/methods.md)

A row is a user's road: dlqat-train --method, fold, export; KEY+dlqat trains on from what KEY left in .cache. Same model,
same 16 x 512 tokens of WikiText-2 test, same text for training and same evaluation as benchmarks/quality.py and
recovery.py, whose rows (float, rtn, gptq, autoround, PEQA, DL-QAT) the table and the plot take over: they are not
measured twice. Methods calibrate on 16384 tokens (quality.py's gptq and AutoRound on 40960), DL-QAT trains 40 steps of
4 x 256. Groups of 32, int8 embedding and head, float activations. Seconds are those of the process on one core.

`bits_paper` is what the method's paper would count for the linears of the blocks, `bits_linears` what is stored for
them (codes, 16-bit scales, labels), `bits_file` every byte of the artifact over all parameters, the int8 embedding
included: onnx (qdq), and coreml for iOS26, which stores 2- and plain 3-bit codes as such, and pruned weights as a mask
and the codes that are left. 3 bits are mirrored (docs/adr/0007) and ship as int4 unless a row says plain.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _common import HERE, Results, peak_gb, reset_peak, smollm2, text
from _methods_plot import plot
from _methods_table import everything
from quality import tokens
from recovery import accuracy as tasks
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from dlqat import adapter, atomic, plan, source
from dlqat.exporters import fold, pipeline
from dlqat.folded import disk
from dlqat.recipe import BLOCKS, LayerSpec, Recipe, Rule, portable
from dlqat.runtime_tests.eval import text_loss
from dlqat.source import Loaded
from dlqat.trainer.data import training_data
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.layers.prepare import load
from dlqat.trainer.options import Options
from dlqat.trainer.request import TrainRequest
from dlqat.trainer.run import run
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.compressed import Compressed
from dlqat.trainer.starts.restore import restore
from dlqat.trainer.starts.start import Start
from dlqat.trainer.train import accelerator, train

TRAINED = Options(save_every=0, block_distance=0.0, magnitude_rate=1e-2)
UNTRAINED = replace(TRAINED, steps=0, calibration_tokens=16384)
TARGETS = {"onnx": {}, "coreml": {"deployment_target": "iOS26"}}


@dataclass(frozen=True)
class Road:
    """One row."""

    method: str
    bits: int
    settings: tuple[str, ...] = ()
    mirrored: bool = True
    symmetric: bool = True

    @property
    def recipe(self) -> Recipe:
        grid = {"mirrored": self.mirrored, "symmetric": self.symmetric}
        return Recipe((*portable(self.bits, 32, 0).rules, Rule(BLOCKS, grid)))

    def made(self) -> Start:
        return by_name.parse(self.method, self.settings)


ROADS: dict[str, Road] = {
    "nm-2:4-4b": Road("nm", 4),
    "casp-3b": Road("casp", 3),
    "nm-ternary-4:8": Road("nm", 2, ("score=ternary", "n=4", "m=8")),
    "swsc-4b": Road("swsc", 4),
    "swsc-3b": Road("swsc", 3),
    "swsc-2b": Road("swsc", 2),
    "swsc-gptq-2b": Road("swsc", 2, ("rounding=gptq",)),
    "casp-4b": Road("casp", 4),
    "nm-4:8-4b": Road("nm", 4, ("n=4", "m=8")),
    "nm-2:4-lowrank-4b": Road("nm", 4, ("low_rank=0.1",)),
    "casp-2b": Road("casp", 2),
    "nm-ternary-4:8-spread": Road("nm", 2, ("score=ternary", "n=4", "m=8", "spread=1")),
    "nm-2:4-3b": Road("nm", 3),
    "nm-wanda-2:4-4b": Road("nm", 4, ("score=wanda",)),
    **{f"rtn-{bits}b": Road("rtn", bits) for bits in (4, 3, 2)},
    "rtn-3b-plain": Road("rtn", 3, mirrored=False),
    "rtn-2b-zero-points": Road("rtn", 2, symmetric=False),
}
"""What a reader learns most from comes first."""
KEPT = HERE.parent / ".cache" / "methods"
THEN = "+dlqat"
ALONE = ("swsc-2b", "nm-ternary-4:8-spread", "rtn")
"""Prefixes of rows that nothing is trained from here."""


def keys() -> Iterator[str]:
    for key in ROADS:
        yield key
        if not key.startswith(ALONE):
            yield f"{key}{THEN}"


def compressed(key: str, keep: Path) -> tuple[Path, dict[str, float]]:
    """keep/KEY, the model_dir of an untrained row, made if it is not there; what it cost then."""
    road, folder, cost = ROADS[key], keep / key, keep / f"{key}.cost.json"
    valid = keep / "valid.txt"  # without its last 40 kB, which hold what quality.py keeps out of training
    valid.write_text(text("wikitext-2/valid.txt").read_text(encoding="utf-8")[:-40_000], encoding="utf-8")
    if not (folder / "adapters.safetensors").exists():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.process_time()
        run(
            TrainRequest(smollm2(), folder, (str(valid),), road.recipe, UNTRAINED, road.made()),
            Console(stderr=True),
        )
        atomic.text(cost, json.dumps({"seconds": round(time.process_time() - began, 1), "peak_gb": peak_gb()}))
    return folder, json.loads(cost.read_text(encoding="utf-8"))


def start_row(key: str, keep: Path) -> dict[str, Any]:
    """Compress, fold, export; evaluate folded/ as transformers loads it."""
    road, (folder, cost) = ROADS[key], compressed(key, keep)
    folded = fold.fold(folder)
    row: dict[str, Any] = {"method": road.method, "settings": list(road.settings), "bits": road.bits, **cost}
    row |= {**_bits(folder, road), "bits_file": _file_bits(folded)}
    # The perplexity of rtn stands in quality.json.
    return row if road.method == "rtn" else {**row, "test": _perplexity(*restored(key, keep))}


def trained_row(key: str, keep: Path, results: Results) -> dict[str, Any]:
    """Train on with DL-QAT from keep/KEY; the layers' shapes, and so the file's bits, are those of KEY."""
    before, (model, loaded) = results.rows[key], prepared(key, keep)
    examples = training_data.load([str(keep / "valid.txt")], loaded, training_data.DataPlan(256, 0), Path())
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        batches = Batches(examples, TRAINED.batch_size, TRAINED.seed)
        trained = train(model, batches, TRAINED, Path(folder), accelerator(TRAINED), lambda row: None)
    seconds = time.process_time() - began
    adapter.write(trained, keep / f"{key}{THEN}.safetensors")
    kept = {k: before[k] for k in ("method", "settings", "bits", "bits_paper", "bits_linears", "bits_file")}
    times = {"seconds": round(before["seconds"] + seconds, 1), "train_seconds": round(seconds, 1), "peak_gb": peak_gb()}
    return {**kept, "then": "dlqat", "start": before["test"], **times, "test": _perplexity(model.eval(), loaded)}


def prepared(key: str, keep: Path) -> tuple[PreTrainedModel, Loaded]:
    """The model of keep/KEY, ready to be trained."""
    start, _ = compressed(key, keep)
    origin = source.resolve(smollm2())
    loaded, tensors = source.load(origin), load_file(start / "adapters.safetensors")
    restore(loaded.model, ROADS[key].recipe, plan.read(start), tensors)
    load(loaded.model, tensors)
    return loaded.model, loaded


def restored(key: str, keep: Path) -> tuple[PreTrainedModel, Loaded]:
    """The model of a row that is already known."""
    start = key.removesuffix(THEN)
    if start == key:
        loaded = source.load(source.resolve(smollm2()))
        return AutoModelForCausalLM.from_pretrained(keep / key / fold.FOLDED).eval(), loaded
    model, loaded = prepared(start, keep)
    load(model, {**load_file(keep / start / "adapters.safetensors"), **load_file(keep / f"{key}.safetensors")})
    return model.eval(), loaded


def _perplexity(model: PreTrainedModel, loaded: Loaded) -> float:
    return text_loss.perplexity(text_loss.of_model(model), tokens(loaded, "test")).perplexity


def _bits(model_dir: Path, road: Road) -> dict[str, float]:
    shapes, start = source.resolve(smollm2()).decoder.linears(), road.made()
    nodes = plan.read(model_dir) if isinstance(start, Compressed) else dict(road.recipe.layers(shapes))
    size = sum(shapes[n][0] * shapes[n][1] for n in nodes)
    paper = sum(_paper(start, node, shapes[n]) * shapes[n][0] * shapes[n][1] for n, node in nodes.items())
    stored = sum(plan.bits(node, shapes[n]) for n, node in nodes.items())
    return {"bits_paper": round(paper / size, 3), "bits_linears": round(stored / size, 3)}


def _paper(start: Start, node: plan.Node, shape: tuple[int, int]) -> float:
    if isinstance(start, Compressed):
        return start.method.paper_bits(node, shape)
    assert isinstance(node, LayerSpec)
    return node.bits


def _file_bits(folded: Path) -> dict[str, float]:
    """Bits per parameter of each artifact, every byte of it counted."""
    model, found = disk.read(folded), dict[str, float]()
    for name, asked in TARGETS.items():
        target = pipeline.load(name)
        options = pipeline.choose(target, name, model.config, 2048, asked)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = pipeline.write(target, model, folded, Path(folder) / name, options)["bits_per_weight"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="prefix of the rows to measure")
    parser.add_argument(
        "--keep", type=Path, default=KEPT, help="folder for the model_dirs, which trained rows start from"
    )
    parser.add_argument("--exact", help="the one row to measure")
    parser.add_argument("--tasks", action="store_true", help="measure ARC-Easy and PIQA of known rows instead")
    parser.add_argument("--plot", action="store_true", help="draw the plot; measure nothing")
    arguments = parser.parse_args()
    results = Results("methods")
    if arguments.plot:
        plot(everything(results))
        return
    keep: Path = arguments.keep
    keep.mkdir(parents=True, exist_ok=True)
    for key in keys():
        wanted = key == arguments.exact if arguments.exact else key.startswith(arguments.only)
        row = results.rows.get(key)
        if arguments.tasks and wanted and row and "test" in row and "piqa" not in row:
            model, loaded = restored(key, keep)
            results.add(key, {**row, **tasks(model, loaded.tokenizer)})
        if arguments.tasks or row or not wanted:
            continue
        start = key.removesuffix(THEN)
        reset_peak()
        results.add(key, start_row(key, keep) if start == key else trained_row(start, keep, results))
        print(key, results.rows[key], flush=True)
        plot(everything(results))


if __name__ == "__main__":
    main()
