# SPDX-License-Identifier: Apache-2.0
"""Rows of results/devices.json or runtimes.json as a table: devices by artifacts, then why a cell is not green."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "{} on {}"


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: what is proved, the worst KL, options of apps' builds, ms per decoded token, where they were measured."""
    found = [key.split(" on ") for key in rows]
    kinds, devices = (sorted({pair[i] for pair in found}, key=[p[i] for p in found].index) for i in (0, 1))
    lines, reasons = ["| " + " | ".join(("device", *kinds)) + " |", "|" + "---|" * (len(kinds) + 1)], [""]
    for device in devices:
        cells = [rows.get(KEY.format(kind, device)) for kind in kinds]
        lines.append("| " + " | ".join([f"`{device}`", *(_cell(row) if row else "" for row in cells)]) + " |")
        for kind, row in zip(kinds, cells, strict=True):
            if row and "reason" in row:
                reasons.append(f"- {kind} on {device}: {row['reason']}")
    return [*lines, *(reasons if reasons[1:] else ())]


def _cell(row: Mapping[str, Any]) -> str:
    facts = [row["status"]]
    if row.get("kl_max") is not None:
        facts.append(f"KL {row['kl_max']:.0e}")
    if "decode_ms" in row:
        facts.append(f"{row['decode_ms']:.1f} ms")
    if told := row.get("conditions"):
        facts.append(f"{sum(status == 'passed' for status in told.values())} of {len(told)} options")
    return ", ".join(facts)
