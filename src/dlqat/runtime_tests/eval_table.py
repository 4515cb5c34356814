# SPDX-License-Identifier: Apache-2.0
"""The figures of dlqat-eval as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text


def table(result: Mapping[str, Any]) -> Table:
    """Artifact, reference and difference side by side, each with its interval, for the content of a result file."""
    found = Table(title=Text(f"dlqat-eval on {result['device']} ({result['setting']})"), title_style="")
    models = ["artifact", "reference", *(["float"] if result.get("float") else [])]
    for column in ("", *models[:2], "difference", *models[2:], *(["from float"] if models[2:] else [])):
        found.add_column(column)
    if lost := max(result.get("cut", {}).values(), default=0):
        found.caption = f"{lost} questions lost their beginning: the context has no room for them"
    if text := result["text"]:
        shown = [_span(text["artifact"], 1), _span(text.get("reference"), 1), _gap(text.get("difference_nats"))]
        shown += [_span(text.get("float"), 1), _gap(text.get("from_float_nats"))] if models[2:] else []
        found.add_row(*map(Text, (f"{measured(text)}, {text['tokens']} tokens", *shown)))
    for task, metrics in result["tasks"].items():
        own = [model.get(task, {}) for model in (result["lm_eval"] or {}).values()]
        for name in _own(own[0] if own else {}, metrics):  # no means over questions (word_perplexity)
            shown = [f"{one[name]:.4g}" for one in own]
            shown = [*shown[:2], *[""] * (3 - len(shown[:2])), *shown[2:], *([""] if models[2:] else [])]
            found.add_row(*map(Text, (f"{task} {name.removesuffix(',none')}", *shown)))
        for metric, row in metrics.items():
            factor = 100 if is_share(row) else 1
            keys = ["artifact", "reference", "difference", *(["float", "from_float"] if models[2:] else [])]
            shown = [_span(row.get(k), factor) for k in keys]
            found.add_row(*map(Text, (f"{task} {metric}, {row['questions']} questions", *shown)))
    return found


def _own(figures: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """The figures of lm_eval that are not among the metrics."""
    known = {name.replace(", ", ",") for name in metrics} | {f"{name.partition(', ')[0]},none" for name in metrics}
    numbers = (n for n, value in figures.items() if "," in n and "_stderr" not in n and isinstance(value, int | float))
    single = {name for name in metrics if ", " not in name}  # read in one way, whatever its filter is called
    return [n for n in numbers if n not in known and n.partition(",")[0] not in single]


def measured(text: Mapping[str, Any]) -> str:
    """What --text gave: perplexity of a text, or of answers."""
    return f"perplexity of {text['answers']} answers" if text.get("answers") else "perplexity"


def is_share(row: Mapping[str, Any]) -> bool:
    """Whether a metric's figures are shares of one, which are shown in percent (a log-likelihood is none)."""
    return all(0 <= (row[k].get("value") or 0) <= 1 for k in ("artifact", "reference") if row.get(k))


def _span(interval: Mapping[str, float] | None, factor: float) -> str:
    if interval is None:
        return ""
    value, low, high = (interval[k] for k in ("value", "low", "high"))
    return f"{factor * value:.1f} [{_edge(low, factor)}, {_edge(high, factor)}]"


def _gap(gap: Mapping[str, float] | None) -> str:
    return f"{gap['value']:+.1e} nats [{_nats(gap['low'])}, {_nats(gap['high'])}]" if gap else ""


def _nats(value: float | None) -> str:
    return "?" if value is None else f"{value:+.1e}"


def _edge(value: float | None, factor: float) -> str:
    return "?" if value is None else f"{factor * value:.1f}"
