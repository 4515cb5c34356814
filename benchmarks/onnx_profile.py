# SPDX-License-Identifier: Apache-2.0
"""Where the time of a prompt and of a token goes: milliseconds by operator, from ONNX Runtime's own profiler.

    python benchmarks/onnx_profile.py [--threads 1 2]

Our two ONNX forms in onnxruntime-genai, as onnx_speed.py runs them (256 random tokens of prompt, then one at a time). Of
each operator the median over the runs of the time of all its nodes. Wall clock: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from _common import Results, base_model, command
from _race import DECODE, Genai

PROMPTS = 5
SHOWN = 0.02
"""Milliseconds below which an operator is not worth a line."""


def operators(events: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """phase -> operator -> milliseconds; `all`: the run as a whole."""
    runs = sorted(((e["ts"], e["dur"]) for e in events if e["name"] == "model_run"), key=lambda run: run[0])
    kernels = [e for e in events if e["name"].endswith("_kernel_time")]
    found: dict[str, list[Counter[str]]] = defaultdict(list)
    for i, (start, length) in enumerate(runs):
        spent = Counter({"all": length})
        for e in kernels:
            if start <= e["ts"] < start + length:
                spent[e["args"]["op_name"]] += e["dur"]
        found["decode" if i % (1 + DECODE) else "prefill"].append(spent)
    return {phase: _medians(counters) for phase, counters in found.items()}


def _medians(counters: list[Counter[str]]) -> dict[str, float]:
    names = {name for counter in counters for name in counter}
    found = {name: float(np.median([c[name] for c in counters])) / 1e3 for name in names}
    return {n: round(ms, 3) for n, ms in sorted(found.items(), key=lambda item: -item[1]) if ms >= SHOWN}


def profile(folder: Path, threads: int) -> dict[str, dict[str, float]]:
    """PROMPTS times a prompt and DECODE tokens."""
    with tempfile.TemporaryDirectory() as home:
        model = Genai(folder, threads, {"enable_profiling": f"{home}/profile"})
        for _ in range(PROMPTS):
            model.prefill()
            for _ in range(DECODE):
                model.decode()
        del model  # the profile is written now
        (path,) = Path(home).glob("profile*.json")
        return operators(json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    results = Results("onnx_profile")
    with tempfile.TemporaryDirectory() as home:
        for form in ("qdq", "ort"):
            folder = Path(home) / form
            subprocess.run(
                command("exporters.cli", base_model(), "--no-verify", "--form", form, "-o", folder),
                check=True,
                capture_output=True,
            )
            for threads in arguments.threads:
                row = profile(folder, threads)
                results.add(f"dlqat {form}, {threads} thread{'s'[: threads > 1]}", row)
                print(form, threads, row, flush=True)


if __name__ == "__main__":
    main()
