# SPDX-License-Identifier: Apache-2.0
"""report.html: report.json drawn for people. One file, no script, no network, light and dark, phone and desk.

Everything shown comes from report.json, so the page can be drawn again from it. It is made as a value (page_parts.py),
and page_template/ draws that with jinja2, which escapes all text by itself; the browser is told to run and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dlqat.runtime_tests import charts
from dlqat.runtime_tests.eval_table import is_share, measured
from dlqat.runtime_tests.page_parts import (
    Cell,
    Code,
    Details,
    Drawn,
    Figure,
    Heading,
    Mark,
    Page,
    Part,
    Section,
    Table,
    Text,
)
from dlqat.visible import visible

_HOME = Path(__file__).with_name("page_template")


def html(content: Mapping[str, Any]) -> str:
    """The page for the content of a report.json."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HOME), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    style = (_HOME / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = environment.get_template("report.html.jinja")
    return template.render(page=page(content), style=Markup(style), style_digest=digest).lstrip() + "\n"  # noqa: S704 our own file


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(value) if isinstance(value, str) else value


def page(content: Mapping[str, Any]) -> Page:
    """What stands on it."""
    parts = (
        ("Ladder", ladder),
        ("Distance per token", differences),
        ("Linears", linears),
        ("Size", sizes),
        ("Speed while checking", speed),
        ("Accuracy", accuracy),
        ("Where it ran", machine),
        ("Again", reproduce),
    )
    sections = [Section(title, tuple(make(content))) for title, make in parts]
    return Page(
        verdict=str(content["verdict"]),
        artifact=str(content["artifact"]),
        device=str(content["device"]),
        reference=str(content["reference"]),
        emulated=tuple(sorted({str(f["emulation"]) for f in _facts(content).values() if "emulation" in f})),
        sections=tuple(s for s in sections if s.parts),
    )


def ladder(content: Mapping[str, Any]) -> Iterator[Part]:
    """Every check: rung, status, sentence."""
    checks = content["checks"]
    counts = {s: sum(c["status"] == s for c in checks) for s in ("passed", "failed", "not verified")}
    yield Text(", ".join(f"{n} {s}" for s, n in counts.items() if n), soft=True)
    rows = tuple((c["rung"], c["name"], Mark(c["status"]), c["summary"]) for c in checks)
    yield Table(("rung", "check", "status", "result"), rows, style="ladder")


def differences(content: Mapping[str, Any]) -> Iterator[Part]:
    """Histogram of KL per token for every setting of L2."""
    found = [c for c in content["checks"] if c["rung"] == "L2" and "kl_histogram" in c["figures"]]
    if not found:
        return
    yield Text(
        "KL divergence in nats between the reference's next-token distribution and the artifact's, one count per "
        "position. Left is equal.",
        soft=True,
    )
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
        chart = charts.histogram([float(e) for e in range(-16, 3)], series, "nats")
        yield Figure(chart, note, check["name"], check["status"])


def linears(content: Mapping[str, Any]) -> Iterator[Part]:
    """Signal to noise of each linear under int8 activations, and the worst ones."""
    found = {
        c["name"]: c["figures"]["layers"] for c in content["checks"] if c["rung"] == "L1" and "layers" in c["figures"]
    }
    rounded = {n: rows for n, rows in found.items() if n.startswith("int8")}
    if not found:
        return
    if rounded:
        names = [row["name"] for row in next(iter(rounded.values()))]
        same = {n: rows for n, rows in rounded.items() if [r["name"] for r in rows] == names}
        levels = {n: [_number(r["sqnr_to_float_db"]) for r in rows] for n, rows in same.items()}
        yield Figure(
            charts.points(names, levels, "dB"),
            "Signal to noise of each linear's output against unrounded inputs: what the runtime's int8 rounding costs "
            "there. Lookups and linears that were not rounded have no point.",
        )
    worst = sorted(((_number(r["error"], 1e9), n, r) for n, v in found.items() for r in v), key=lambda x: -x[0])[:12]
    rows = tuple((r["name"], n, f"{e:.1e}", f"{_number(r['sqnr_to_float_db']):.0f} dB") for e, n, r in worst)
    table = Table(("linear", "setting", "relative error", "SQNR to float"), rows)
    yield Details("Largest errors under the stated arithmetic", table)


def sizes(content: Mapping[str, Any]) -> Iterator[Part]:
    """Bytes by component."""
    if found := content.get("sizes"):
        yield Text(f"{sum(found.values()) / 1e6:.1f} MB")
        yield Figure(charts.stack(found))


def speed(content: Mapping[str, Any]) -> Iterator[Part]:
    """Tokens per second in L2's runs, where the device is real."""
    rows: list[tuple[Cell, ...]] = []
    for setting, facts in _facts(content).items():
        if t := facts.get("timings"):
            prefill, decode = (_rate(t[f"{k}_tokens"], t[f"{k}_seconds"]) for k in ("prefill", "decode"))
            rows.append((setting, prefill, decode, f"{t['load_seconds']:.1f} s"))
    if rows:
        words = "Tokens per second, all logits returned, short prompts. An indication; benchmarks/ measures speed."
        yield Text(words, soft=True)
        yield Table(("setting", "prefill", "decode", "load"), tuple(rows), numbers=(1, 2, 3))


def accuracy(content: Mapping[str, Any]) -> Iterator[Part]:
    """What dlqat-eval found, beside the reference."""
    found = content.get("accuracy")
    if not found:
        return
    yield Text(f"95 % intervals; the difference is taken question by question. Setting: {found['setting']}.", soft=True)
    rows: list[tuple[Cell, ...]] = []
    if text := found.get("text"):
        spans = [_span(text.get(key), 1, "") for key in ("artifact", "reference", "float")]
        gaps = [_nats(gap) if (gap := text.get(key)) else "" for key in ("difference_nats", "from_float_nats")]
        rows.append((f"{measured(text)}, {text['tokens']} tokens", *spans[:2], gaps[0], spans[2], gaps[1]))
    for task, metrics in found["tasks"].items():
        for metric, row in metrics.items():
            share = is_share(row)
            cells: list[Cell] = [f"{task} {metric}, {row['questions']} questions"]
            for order, one in enumerate((row.get("artifact"), row.get("reference"))):
                chart = _drawn(one, order) if share else charts.Chart()
                cells.append(Drawn(chart, _span(one) if share else _span(one, 1, "")))
            floating = _span(row.get("float")) if share else _span(row.get("float"), 1, "")
            gaps = [_changed(row.get(key), share=share) for key in ("difference", "from_float")]
            rows.append((*cells, gaps[0], floating, gaps[1]))
    columns = ("", "artifact", "reference", "difference", "float", "from float")
    wide = len(columns) if any(row[4] for row in rows) else 4
    yield Table(columns[:wide], tuple(row[:wide] for row in rows))
    yield Code(found.get("command", ""))


def _changed(gap: Mapping[str, Any] | None, *, share: bool) -> str:
    """A paired difference with the questions that it comes from."""
    if not gap:
        return ""
    shown = _span(gap, unit=" points") if share else _span(gap, 1, "")
    return f"{shown} ({gap.get('better', 0)} better, {gap.get('worse', 0)} worse)"


def machine(content: Mapping[str, Any]) -> Iterator[Part]:
    """What ran where: facts that are the same in all settings once, then what each setting adds."""
    elsewhere = ("timings", "not_verified")  # shown as speed, and in the ladder
    facts = {k: {n: v for n, v in f.items() if n not in elsewhere} for k, f in _facts(content).items()}
    common = {k: v for k, v in next(iter(facts.values()), {}).items() if all(f.get(k) == v for f in facts.values())}
    loose = {k: v for k, v in content["facts"].items() if not isinstance(v, Mapping)}
    yield _fact_table({**loose, **common, "packages": content["versions"]})
    for setting, own in facts.items():
        if rest := {k: v for k, v in own.items() if k not in common}:
            yield Heading(setting)
            yield _fact_table(rest)


def reproduce(content: Mapping[str, Any]) -> Iterator[Part]:
    """The command."""
    yield Code(content["command"])
    words = "Every figure is in report.json; limits and their reasons are in runtime_tests/tolerances.py."
    yield Text(f"{content['seconds']:.0f} s. {words}", soft=True)


def _facts(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Setting -> facts."""
    return {k: v for k, v in content["facts"].items() if isinstance(v, Mapping)}


def _fact_table(facts: Mapping[str, Any]) -> Table:
    return Table(("fact", "value"), tuple((k.replace("_", " "), _show(v)) for k, v in facts.items()), style="facts")


def _drawn(one: Mapping[str, Any] | None, order: int) -> charts.Chart:
    """A share with its interval; a mean's normal interval may leave the axis, or not be there (one question)."""
    low, value, high = ((one or {}).get(key) for key in ("low", "value", "high"))
    if low is None or value is None or high is None:
        return charts.Chart()
    return charts.interval(max(0.0, low), value, min(1.0, high), order)


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
