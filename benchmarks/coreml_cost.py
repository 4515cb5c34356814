# SPDX-License-Identifier: Apache-2.0
"""What the Core ML target costs on SmolLM2-135M, int4 g32: the export, the package, the interpreter and its distance.

    python benchmarks/coreml_cost.py [FOLDED]     FOLDED: a folded/ folder; default: rounded to nearest

Times are wall times beside the CPU seconds that they took; on a machine that others use, only the CPU seconds and
the memory are facts of the program. Everything runs in processes of their own, one after the other.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Results, base_model, text
from transformers import AutoTokenizer

from dlqat.devices.device import Setting
from dlqat.devices.host.coreml_reference import CoremlReference
from dlqat.folded import disk
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import divergence, integers
from dlqat.runtime_tests.reference.model import Reference

TOKENS, PREFILL, DECODE = 300, 256, 16


def main() -> None:
    results = Results("coreml_cost")
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
        folded = given or base_model() / "folded"
        folder = Path(scratch) / "coreml"
        results.add("export", export(folded, folder))
        print("export", results.rows["export"], flush=True)
        results.add("integers", compare(folded, folder))
        print("integers", results.rows["integers"], flush=True)
        for name in ("float", "float16"):
            results.add(name, run(folded, folder, Setting(name, False, torch.get_num_threads())))
            print(name, results.rows[name], flush=True)


def export(folded: Path, folder: Path) -> dict[str, Any]:
    """dlqat-export as a process: its time, its memory, its size."""
    command = [sys.executable, "-m", "dlqat.exporters.cli", "--target", "coreml", str(folded), "-o", str(folder)]
    start = time.perf_counter()
    subprocess.run([*command, "--no-verify"], check=True, stderr=subprocess.DEVNULL)
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
        "mb": round(manifest["bytes"]["total"] / 1e6, 2),
        "bits_per_weight": manifest["bits_per_weight"],
        "context": manifest["context"],
        "load_average": os.getloadavg()[0],
    }


def compare(folded: Path, folder: Path) -> dict[str, Any]:
    """Rung L0."""
    start = time.process_time()
    want = integers.wanted(disk.read(folded))
    found = integers.compare(readers.read(folder / "model.mlpackage"), want)
    return {
        "codes": found.codes,
        "scales": found.scales,
        "differences": len(found.differences),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def run(folded: Path, folder: Path, setting: Setting) -> dict[str, Any]:
    """Distance over TOKENS of real text, prefill and decode, and how long they take."""
    reference = Reference(folded)
    ids = AutoTokenizer.from_pretrained(folded)(
        text("wikitext-2/test.txt").read_text(encoding="utf-8")[:8000]
    ).input_ids[:TOKENS]
    rotary = torch.float16 if setting.activations == "float16" else None
    want = reference.logits(ids, rotary=rotary)
    with closing(CoremlReference().open(folder / "model.mlpackage", setting)) as session:
        session.logits(ids[:2])
        session.reset()
        rows, seconds = [], []
        for chunk in [ids[:PREFILL], *([t] for t in ids[PREFILL : PREFILL + DECODE]), ids[PREFILL + DECODE :]]:
            start, cpu = time.perf_counter(), time.process_time()
            rows.append(session.logits(chunk))
            seconds.append((time.perf_counter() - start, time.process_time() - cpu))
        load = session.timings.load_seconds
    found = divergence.summarize(divergence.compare(want, np.concatenate(rows)))
    return {
        "tokens": found.positions,
        "kl_max": found.kl_max,
        "kl_mean": found.kl_mean,
        "top1": found.top1,
        "max_abs": found.max_abs,
        "load_seconds": round(load, 1),
        "prefill_256_seconds": round(seconds[0][0], 2),
        "prefill_256_cpu_seconds": round(seconds[0][1], 2),
        "decode_seconds": round(statistics.median(s for s, _ in seconds[1 : DECODE + 1]), 3),
        "decode_cpu_seconds": round(statistics.median(c for _, c in seconds[1 : DECODE + 1]), 3),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
