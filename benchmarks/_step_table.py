# SPDX-License-Identifier: Apache-2.0
"""The tables of a training step in docs/benchmarks.md and docs/kernels.md, from step.json.

A ratio is that of its row's own run, with LoRA measured in the same run; step.py writes it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]
LORA = "LoRA (PEFT), no quantization"
NAMED = {
    LORA: LORA,
    "dlqat ce": "dlqat, cross entropy",
    "dlqat kd": "dlqat, kd (a second forward for the teacher)",
    "dlqat ce, int8 activations": "dlqat, cross entropy, int8 activations",
    "NNCF FQ_LORA": "NNCF FQ_LORA",
    "torchao QAT": "torchao QAT",
    "torchao QAT, int8 activations": "torchao QAT, int8 activations",
}
"""Contestant -> what a reader calls it."""
RATIOS = "| | speed, 1 / 2 threads | peak memory |\n|---|---|---|\n"
SPEEDS = "| | two threads | goal (1.5 times the prototype) |\n|---|---|---|\n"
GOALS: tuple[tuple[str, str, int | None], ...] = (
    ("dlqat kd", "kd", 322),
    ("dlqat ce", "ce", 480),
    ("dlqat ce, int8 activations", "ce, int8 activations", None),
    (LORA, "PEFT LoRA of the same rank, no quantization at all", None),
)
"""Contestant, name in docs/kernels.md, tokens a second that were aimed at."""


def ratios(rows: Rows) -> str:
    """docs/benchmarks.md's: speed and peak memory (of one thread) as ratios to LoRA; LoRA's own in full."""
    lines: list[str] = []
    for key, name in NAMED.items():
        one, two = rows[f"{key}, 1 thread"], rows[f"{key}, 2 threads"]
        speed = " / ".join(f"{row['ratio_to_lora']['speed']:.2f}" for row in (one, two))
        peak = f"{one['ratio_to_lora']['peak_rss']:.2f}"
        if key == LORA:
            speed = f"1.00 ({one['tokens_per_second']:.0f} / {two['tokens_per_second']:.0f} tokens/s)"
            peak = f"1.00 ({one['peak_rss_mb'] / 1000:.1f} GB)"
        lines.append(f"| {name} | {speed} | {peak} |\n")
    return RATIOS + "".join(lines)


def speeds(rows: Rows) -> str:
    """docs/kernels.md's: tokens a second on two threads, beside what was aimed at."""
    lines: list[str] = []
    for key, name, goal in GOALS:
        found = rows[f"{key}, 2 threads"]["tokens_per_second"]
        said = "" if goal is None else f"{goal}: {'met' if found >= goal else 'missed'}"
        lines.append(f"| {name} | {found:.0f} | {said} |\n")
    return SPEEDS + "".join(lines)
