# SPDX-License-Identifier: Apache-2.0
"""report.html: report.json drawn for people. One file, no script, no network, light and dark, phone and desk.

Everything shown comes from report.json, so the page can be drawn again from it. On a narrow screen the rows
of a table become cards: each cell carries its column's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from dlqat.runtime_tests import charts
from dlqat.runtime_tests.eval_table import is_share
from dlqat.runtime_tests.html_style import CSS


def page(content: Mapping[str, Any]) -> str:
    """The page for the content of a report.json."""
    sections = (ladder, differences, linears, sizes, speed, accuracy, machine, reproduce)
    verdict = content["verdict"]
    title = f"dlqat-check: {verdict}"
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{CSS}</style></head><body><main>'
        f"<h1>dlqat-check {_mark(verdict)}</h1><p><code>{escape(str(content['artifact']))}</code> on "
        f"<b>{escape(str(content['device']))}</b>, against <code>{escape(str(content['reference']))}</code></p>"
    )
    emulated = {str(f["emulation"]) for f in _facts(content).values() if "emulation" in f}
    head += "".join(
        f"<p><b>Emulation:</b> {escape(e)}. No statement about the speed of a device.</p>" for e in emulated
    )
    return head + "".join("".join(section(content)) for section in sections) + "</main></body></html>\n"


def ladder(content: Mapping[str, Any]) -> Iterator[str]:
    """Every check: rung, status, sentence."""
    checks = content["checks"]
    counts = {s: sum(c["status"] == s for c in checks) for s in ("passed", "failed", "not verified")}
    yield f"<section><h2>Ladder</h2><p class=soft>{', '.join(f'{n} {s}' for s, n in counts.items() if n)}</p>"
    rows = ((c["rung"], c["name"], _mark(c["status"]), escape(c["summary"])) for c in checks)
    yield from _table(("rung", "check", "status", "result"), rows, raw=(2, 3), kind="ladder")
    yield "</section>"


def differences(content: Mapping[str, Any]) -> Iterator[str]:
    """Histogram of KL per token for every setting of L2."""
    found = [c for c in content["checks"] if c["rung"] == "L2" and "kl_histogram" in c["figures"]]
    if not found:
        return
    yield "<section><h2>Distance per token</h2><p class=soft>KL divergence in nats between the reference's next-token "
    yield "distribution and the artifact's, one count per position. Left is equal.</p>"
    for check in found:
        figures = check["figures"]
        series = {"artifact": figures["kl_histogram"]}
        note = "float32 products: only the order of additions may differ."
        if "floor_histogram" in figures:
            series["noise floor"] = figures["floor_histogram"]
            note = (
                "int8 activations: the reference rounds as the runtime does. The noise floor is that reference against "
                "itself with noise of 1e-6: nothing can be held closer than it."
            )
        yield f"<figure><h3>{escape(check['name'])} {_mark(check['status'])}</h3>"
        yield charts.histogram([float(e) for e in range(-16, 3)], series, "nats")
        yield f"<figcaption>{escape(note)}</figcaption></figure>"
    yield "</section>"


def linears(content: Mapping[str, Any]) -> Iterator[str]:
    """Signal to noise of each linear under int8 activations, and the worst ones."""
    found = {
        c["name"]: c["figures"]["layers"] for c in content["checks"] if c["rung"] == "L1" and "layers" in c["figures"]
    }
    rounded = {n: rows for n, rows in found.items() if n.startswith("int8")}
    if not found:
        return
    yield "<section><h2>Linears</h2>"
    if rounded:
        names = [row["name"] for row in next(iter(rounded.values()))]
        same = {n: rows for n, rows in rounded.items() if [r["name"] for r in rows] == names}
        yield "<figure>"
        yield charts.points(names, {n: [_number(r["sqnr_to_float_db"]) for r in v] for n, v in same.items()}, "dB")
        yield "<figcaption>Signal to noise of each linear's output against unrounded inputs: what the runtime's int8 "
        yield "rounding costs there. Lookups and linears that were not rounded have no point.</figcaption></figure>"
    yield "<details><summary>Largest errors under the stated arithmetic</summary>"
    worst = sorted(((_number(r["error"], 1e9), n, r) for n, v in found.items() for r in v), key=lambda x: -x[0])[:12]
    rows = ((r["name"], n, f"{e:.1e}", f"{_number(r['sqnr_to_float_db']):.0f} dB") for e, n, r in worst)
    yield from _table(("linear", "setting", "relative error", "SQNR to float"), rows)
    yield "</details></section>"


def sizes(content: Mapping[str, Any]) -> Iterator[str]:
    """Bytes by component."""
    found = content.get("sizes") or {}
    if not found:
        return
    yield f"<section><h2>Size</h2><p>{sum(found.values()) / 1e6:.1f} MB</p><figure>"
    yield charts.stack(found)
    yield "</figure></section>"


def speed(content: Mapping[str, Any]) -> Iterator[str]:
    """Tokens per second in L2's runs, where the device is real."""
    rows: list[tuple[str, ...]] = []
    for setting, facts in _facts(content).items():
        t = facts.get("timings")
        if t:
            prefill, decode = (_rate(t[f"{k}_tokens"], t[f"{k}_seconds"]) for k in ("prefill", "decode"))
            rows.append((setting, prefill, decode, f"{t['load_seconds']:.1f} s"))
    if not rows:
        return
    yield "<section><h2>Speed while checking</h2><p class=soft>Tokens per second, all logits returned, short prompts. "
    yield "An indication; benchmarks/ measures speed.</p>"
    yield from _table(("setting", "prefill", "decode", "load"), rows, numbers=(1, 2, 3))
    yield "</section>"


def accuracy(content: Mapping[str, Any]) -> Iterator[str]:
    """What dlqat-eval found, beside the reference."""
    found = content.get("accuracy")
    if not found:
        return
    yield "<section><h2>Accuracy</h2><p class=soft>95 % intervals; the difference is taken question by question."
    yield f" Setting: {escape(found['setting'])}.</p>"
    rows: list[tuple[str, ...]] = []
    if text := found.get("text"):
        gap = text.get("difference_nats")
        rows.append(
            (
                f"perplexity, {text['tokens']} tokens",
                _span(text["artifact"], 1, ""),
                _span(text.get("reference"), 1, ""),
                _nats(gap) if gap else "",
            )
        )
    for task, metrics in found["tasks"].items():
        for metric, row in metrics.items():
            share, gap = is_share(row), row.get("difference")
            cells = [f"{task} {metric}, {row['questions']} questions"]
            for order, one in enumerate((row["artifact"], row.get("reference"))):
                cells.append(f"{_drawn(one, order) if share else ''} {_span(one) if share else _span(one, 1, '')}")
            changed = f" ({gap['better']} better, {gap['worse']} worse)" if gap else ""
            shown = (_span(gap, unit=" points") if share else _span(gap, 1, "")) if gap else ""
            rows.append((*cells, f"{shown}{changed}"))
    yield from _table(("", "artifact", "reference", "difference"), rows, raw=(1, 2, 3))
    yield f"<pre>{escape(found['command'])}</pre></section>"


def machine(content: Mapping[str, Any]) -> Iterator[str]:
    """What ran where: facts that are the same in all settings once, then what each setting adds."""
    elsewhere = ("timings", "not_verified")  # shown as speed, and in the ladder
    facts = {k: {n: v for n, v in f.items() if n not in elsewhere} for k, f in _facts(content).items()}
    common = {k: v for k, v in next(iter(facts.values()), {}).items() if all(f.get(k) == v for f in facts.values())}
    loose = {k: v for k, v in content["facts"].items() if not isinstance(v, Mapping)}
    yield "<section><h2>Where it ran</h2>"
    yield from _fact_table({**loose, **common, "packages": content["versions"]})
    for setting, own in facts.items():
        rest = {k: v for k, v in own.items() if k not in common}
        if rest:
            yield f"<h3>{escape(setting)}</h3>"
            yield from _fact_table(rest)
    yield "</section>"


def reproduce(content: Mapping[str, Any]) -> Iterator[str]:
    """The command."""
    yield f"<section><h2>Again</h2><pre>{escape(content['command'])}</pre>"
    yield f"<p class=soft>{content['seconds']:.0f} s. Every figure is in report.json; limits and their reasons are in "
    yield "runtime_tests/tolerances.py.</p></section>"


def _facts(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Setting -> facts."""
    return {k: v for k, v in content["facts"].items() if isinstance(v, Mapping)}


def _mark(status: str) -> str:
    return f'<span class="mark {escape(status.split(maxsplit=1)[0])}">{escape(status)}</span>'


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    raw: Sequence[int] = (),
    numbers: Sequence[int] = (),
    kind: str = "plain",
) -> Iterator[str]:
    yield f'<table class="{kind}"><thead><tr>{"".join(f"<th>{escape(h)}</th>" for h in head)}</tr></thead><tbody>'
    for row in rows:
        cells = (
            f'<td data-k="{escape(key)}"{" class=number" if i in numbers else ""}>{c if i in raw else escape(c)}</td>'
            for i, (key, c) in enumerate(zip(head, row, strict=True))
        )
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table>"


def _fact_table(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(("fact", "value"), ((k.replace("_", " "), _show(v)) for k, v in facts.items()), kind="facts")


def _drawn(one: Mapping[str, Any] | None, order: int) -> str:
    """A share with its interval; a mean's normal interval may leave the axis, or not be there (one question)."""
    if not one or one["low"] is None or one["high"] is None:
        return ""
    return charts.interval(max(0.0, one["low"]), one["value"], min(1.0, one["high"]), order)


def _span(one: Mapping[str, Any] | None, factor: float = 100, unit: str = " %") -> str:
    if one is None:
        return ""
    value, low, high = (one.get(k) for k in ("value", "low", "high"))
    edges = f" [{factor * low:.1f}, {factor * high:.1f}]" if low is not None and high is not None else ""
    return f"{factor * _number(value):.1f}{edges}{unit}"


def _nats(gap: Mapping[str, Any]) -> str:
    value, low, high = (gap.get(k) for k in ("value", "low", "high"))
    edges = f" [{low:+.1e}, {high:+.1e}]" if low is not None and high is not None else ""
    return f"{_number(value):+.1e}{edges} nats"


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.0f}" if seconds else ""


def _number(value: Any, missing: float = 0.0) -> float:
    return missing if value is None else float(value)


def _show(value: Any) -> str:
    match value:
        case Mapping():
            return ", ".join(f"{k} {_show(v)}" for k, v in value.items())
        case list() | tuple():
            return ", ".join(_show(v) for v in value)
        case _:
            return str(value)
