# SPDX-License-Identifier: Apache-2.0
"""The figures of dlqat-eval as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table


def table(result: Mapping[str, Any]) -> Table:
    """Artifact, reference and difference side by side, each with its interval, for the content of a result file."""
    found = Table(title=f"dlqat-eval on {result['device']} ({result['setting']})", title_style="")
    for column in ("", "artifact", "reference", "difference"):
        found.add_column(column)
    if text := result["text"]:
        gap = text.get("difference_nats")
        shown = [_span(text["artifact"], 1), _span(text.get("reference"), 1)]
        shown.append("" if not gap else f"{gap['value']:+.1e} nats [{gap['low']:+.1e}, {gap['high']:+.1e}]")
        found.add_row(f"perplexity, {text['tokens']} tokens", *shown)
    for task, metrics in result["tasks"].items():
        for metric, row in metrics.items():
            shown = [_span(row[k], 100) if row.get(k) else "" for k in ("artifact", "reference", "difference")]
            found.add_row(f"{task} {metric}, {row['questions']} questions", *shown)
    return found


def _span(interval: Mapping[str, float] | None, factor: float) -> str:
    if interval is None:
        return ""
    value, low, high = (interval[k] for k in ("value", "low", "high"))
    return escape(f"{factor * value:.1f} [{_edge(low, factor)}, {_edge(high, factor)}]")


def _edge(value: float | None, factor: float) -> str:
    return "?" if value is None else f"{factor * value:.1f}"
