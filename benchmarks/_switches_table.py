# SPDX-License-Identifier: Apache-2.0
"""The table of docs/training.md from switches.json: what each switch alone, or some together, came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADER = "| setting | KL at the start | KL on test | KL on `held` | test | held |\n|---|---|---|---|---|---|\n"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """4, 3 and 2 bits; of each the nearest on `held` first."""
    ordered = sorted(rows.items(), key=lambda item: (-int(item[0].split()[0]), item[1]["kl_held"]))
    lines = [
        f"| {key} | {row['start_kl_test']:.3f} | {row['kl_test']:.3f} | {row['kl_held']:.3f} | {row['test']:.2f} | {row['held']:.2f} |\n"
        for key, row in ordered
        if row["kl_test"] < 1.5  # what diverged tells nothing but that
    ]
    return HEADER + "".join(lines)
