# SPDX-License-Identifier: Apache-2.0
"""The quality table of the README, from results/quality.json and results/recovery.json: python benchmarks/table.py."""

from __future__ import annotations

from typing import Any

from _common import Results

COLUMNS = ("row", "tokens", "seconds", "test", "held", "KL", "ARC-Easy", "PIQA")


def main() -> None:
    quality, recovery = Results("quality").rows, Results("recovery").rows
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for key, row in sorted(quality.items(), key=lambda item: (item[1].get("bits", 99), item[1]["test"])):
        print("| " + " | ".join([key, *_cells(row, recovery.get(key, {}))]) + " |")


def _cells(row: dict[str, Any], far: dict[str, Any]) -> list[str]:
    seconds = row.get("start_seconds", 0) + row.get("train_seconds", 0)
    tasks = [f"{far[task]:.1f}" if task in far else "" for task in ("arc_easy", "piqa")]
    kl = f"{far['kl']:.3f}" if "kl" in far else ""
    return [str(row.get("tokens", "")), f"{seconds:.0f}", f"{row['test']:.2f}", f"{row['held']:.2f}", kl, *tasks]


if __name__ == "__main__":
    main()
