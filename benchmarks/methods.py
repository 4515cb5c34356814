# SPDX-License-Identifier: Apache-2.0
"""The field's compression methods on one road: WikiText-2 perplexity over the bits that a file really takes.

    python benchmarks/methods.py                  all rows that are not in results/methods.json yet, and the plot
    python benchmarks/methods.py --only nm        rows whose key begins so

A row is a user's road, in a process of its own: dlqat-train --method, fold, export to ONNX; perplexity of folded/ as
transformers loads it (float activations), on the same 16 x 512 tokens of WikiText-2 test as benchmarks/quality.py.
Text for calibration and training is WikiText-2 valid without the end that quality.py holds out: 4096 tokens to
calibrate, 40 steps of 4 x 256 tokens where DL-QAT follows. Groups of 32, int8 embedding and head.

`bits_paper` is what the method's paper would count for the linears of the blocks, `bits_linears` what is stored for
them (codes, 16-bit scales, labels), `bits_file` every byte of the exported ONNX artifact over all parameters. ONNX
keeps 3-bit codes in 4 bits and stores scales in float32, so its files are larger than `bits_linears` says.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _common import HERE, Results, smollm2, text
from quality import LENGTH, WINDOWS
from rich.console import Console
from transformers import AutoTokenizer

from dlqat import checkpoint, plan, source
from dlqat.exporters import fold, onnx_target
from dlqat.exporters.cli import write
from dlqat.exporters.target import Options as Export
from dlqat.recipe import BLOCKS, Recipe, Rule, portable
from dlqat.runtime_tests import accuracy
from dlqat.runtime_tests.reference import Reference
from dlqat.trainer.methods.known import parse
from dlqat.trainer.options import Options
from dlqat.trainer.run import Request, run

CALIBRATION = 4096


@dataclass(frozen=True)
class Road:
    """One row."""

    method: str
    bits: int
    settings: tuple[str, ...] = ()
    then: bool = False
    group_size: int = 32


def roads() -> Iterator[tuple[str, Road]]:
    """Key -> row: untrained ones first, they take minutes."""
    untrained = {
        "casp-3b": Road("casp", 3),
        "nm-2:4-4b": Road("nm", 4),
        "swsc-4b": Road("swsc", 4),
        "gptq-3b": Road("gptq", 3),
        "nm-ternary-4:8": Road("nm", 2, ("score=ternary", "n=4", "m=8")),
        "gptq-2b": Road("gptq", 2),
        "gptq-4b": Road("gptq", 4),
        "nm-2:4-lowrank-4b": Road("nm", 4, ("low_rank=0.1",)),
        "nm-wanda-2:4-4b": Road("nm", 4, ("score=wanda",)),
        "rtn-3b": Road("rtn", 3),
        "rtn-4b": Road("rtn", 4),
        "casp-4b": Road("casp", 4),
        "casp-2.5b": Road("casp", 3, ("average=2.5",)),
        "swsc-gptq-4b": Road("swsc", 4, ("rounding=gptq",)),
        "swsc-small-4b": Road("swsc", 4, ("clusters=0.0625", "rank=0.03125")),
        "casp-keep50-3b": Road("casp", 3, ("keep=0.5",)),
        "nm-4:8-4b": Road("nm", 4, ("n=4", "m=8")),
        "nm-2:4-3b": Road("nm", 3),
        "rtn-2b": Road("rtn", 2),
    }
    yield from untrained.items()
    for key in ("casp-3b", "nm-2:4-4b", "swsc-4b", "gptq-3b", "nm-ternary-4:8", "gptq-2b", "gptq-4b"):
        yield f"{key}+dlqat", replace(untrained[key], then=True)


def measure(road: Road, folder: Path) -> dict[str, Any]:
    """The whole road of one row, in `folder`."""
    layers = {} if road.then else {"rank": 0, "magnitude": False}
    recipe = Recipe((*portable(road.bits, road.group_size, 0).rules, Rule(BLOCKS, layers)))
    steps = Options().steps if road.then else 0
    options = replace(Options(), steps=steps, calibration_tokens=CALIBRATION, save_every=0)
    method = parse(road.method, road.settings)
    began = time.perf_counter()
    data = (str(_text(folder)),)
    run(Request(smollm2(), folder / "model", data, recipe, options, method=method), Console(stderr=True))
    seconds = time.perf_counter() - began
    folded = fold.fold(folder / "model")
    model = checkpoint.read(folded)
    artifact = write(onnx_target, model, folded, folder / "onnx", Export("qdq", 2048))
    test = accuracy.perplexity(Reference(folded).logits, _test(folder / "model")).perplexity
    return {
        "method": road.method,
        "settings": list(road.settings),
        "then": "dlqat" if road.then else "",
        "test": test,
        **_bits(folder / "model", method),
        "bits_file": artifact["bits_per_weight"],
        "file_mb": round(artifact["bytes"]["total"] / 1e6, 1),
        "seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),  # of a shared machine: what `seconds` is worth
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "windows": [WINDOWS, LENGTH],
    }


def _bits(model_dir: Path, method: Any) -> dict[str, float]:
    nodes = plan.from_json(json.loads((model_dir / "plan.json").read_text(encoding="utf-8")), "plan.json")
    shapes = source.resolve(smollm2()).decoder.linears()
    size = sum(shapes[n][0] * shapes[n][1] for n in nodes)
    paper = sum(method.paper_bits(node, shapes[n]) * shapes[n][0] * shapes[n][1] for n, node in nodes.items())
    stored = sum(plan.bits(node, shapes[n]) for n, node in nodes.items())
    return {"bits_paper": round(paper / size, 3), "bits_linears": round(stored / size, 3)}


def _text(folder: Path) -> Path:
    """WikiText-2 valid without its last 40 kB, which hold the part that quality.py keeps out of training."""
    path = folder / "valid.txt"
    path.write_text(text("wikitext-2/valid.txt").read_text(encoding="utf-8")[:-40_000], encoding="utf-8")
    return path


def _test(tokenizer: Path) -> list[int]:
    """The first 16 x 512 tokens of WikiText-2 test."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    return words(text("wikitext-2/test.txt").read_text(encoding="utf-8")).input_ids[: WINDOWS * LENGTH]


def plot(results: Results) -> None:
    """results/methods.png: perplexity over stored bits of the linears."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for key, row in results.rows.items():
        if row["test"] > 1e4:
            continue
        trained = bool(row["then"])
        axes.plot(row["bits_linears"], row["test"], marker="o" if trained else "x", color="C0" if trained else "C1")
        axes.annotate(key, (row["bits_linears"], row["test"]), xytext=(3, 3), textcoords="offset points", fontsize=7)
    axes.axhline(29.602, color="grey", linewidth=0.8)
    axes.text(axes.get_xlim()[1], 29.602, "float", ha="right", va="bottom", fontsize=7, color="grey")
    axes.set(yscale="log", xlabel="stored bits a weight, linears of the blocks", ylabel="WikiText-2 test perplexity")
    axes.set_title("SmolLM2-135M-Instruct; x: not trained, o: 40 steps of DL-QAT after it", fontsize=9)
    figure.tight_layout()
    figure.savefig(HERE / "results" / "methods.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="prefixes of the rows to measure, with commas")
    parser.add_argument("--row", help="measure one row and print it as JSON (how rows get a process of their own)")
    parser.add_argument("--keep", type=Path, help="empty or new folder for model_dir and artifact of --row")
    arguments = parser.parse_args()
    if arguments.row and arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(dict(roads())[arguments.row], arguments.keep)))
        return
    if arguments.row:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(dict(roads())[arguments.row], Path(folder))))
        return
    results = Results("methods")
    for key, _ in roads():
        if key in results.rows or not key.startswith(tuple(arguments.only.split(","))):
            continue
        command = [sys.executable, __file__, "--row", key]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.add(key, json.loads(done.stdout.splitlines()[-1]))
        print(key, results.rows[key], flush=True)
        plot(results)


if __name__ == "__main__":
    main()
