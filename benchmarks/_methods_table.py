# SPDX-License-Identifier: Apache-2.0
"""The table of docs/methods.md: the rows of methods.json, and those of quality.json and recovery.json beside them.

Rows of quality.json have no artifacts of their own: their files are as large as those of rounding to nearest on the same
grid, which methods.py exports.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from _common import Results

ELSEWHERE = (
    "-ce-",
    "l4q",
    "fq_lora",
    "-a8-",
    "slow",
    "120steps",
    "gptq16k",
    "lr4e-3-3b-seed",
    "lr4e-3-4b",
    "seed1",
    "seed2",
)
"""Rows of quality.json that are ablations of DL-QAT: docs/training.md has them."""
ZERO_POINTS = ("autoround+dlqat-kd-2b-seed0", "blocks+dlqat-kd-2b-asymmetric-seed0")
"""Rows of quality.json with integer zero-points."""


def everything(results: Results) -> dict[str, dict[str, Any]]:
    """These rows, and those of quality.json and recovery.json with the bits of rtn's files."""
    quality, recovery = Results("quality").rows, Results("recovery").rows
    found = {k: row for k, row in results.rows.items() if "test" in row}
    for key, row in quality.items():
        if any(word in key for word in ELSEWHERE):
            continue
        plain = row.get("bits") == 3 and ("plain" in key or key == "autoround-3b")
        grid = "-plain" if plain else "-zero-points" if key in ZERO_POINTS else ""
        sizes = results.rows.get(f"rtn-{row.get('bits')}b{grid}", {})
        counted = "do not count" not in row.get("seconds_are", "")
        seconds = row.get("start_seconds", 0) + row.get("train_seconds", 0) if counted else None
        kept = {k: sizes[k] for k in ("bits_paper", "bits_linears", "bits_file") if k in sizes}
        if "peak_gb" in row:
            kept["peak_gb"] = row["peak_gb"]
        found[key] = {**kept, "seconds": seconds, "test": row["test"], **recovery.get(key, {})}
    return found


def table(results: Results) -> Iterator[str]:
    """Lines of a Markdown table, the best perplexity first."""
    columns = ("row", "paper bits", "stored", "onnx file", "coreml file", "perplexity", "ARC-Easy", "PIQA", "s", "GB")
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for key, row in sorted(everything(results).items(), key=lambda item: item[1]["test"]):
        files = row.get("bits_file", {})
        cells = [row.get("bits_paper"), row.get("bits_linears"), files.get("onnx"), files.get("coreml")]
        said = [key, *("" if c is None else f"{c:.2f}" for c in cells), f"{row['test']:.4g}"]
        said += [f"{row[task]:.1f}" if task in row else "" for task in ("arc_easy", "piqa")]
        said += ["" if row["seconds"] is None else f"{row['seconds']:.0f}", str(row.get("peak_gb", ""))]
        yield "| " + " | ".join(said) + " |"
