# SPDX-License-Identifier: Apache-2.0
"""The record of a check, beside the artifact: report.json, and report.md, report.html and badge.svg drawn from it.

A status is one of three. "not verified" means that a thing could not be judged here, with the reason; it
never counts as passed, and it does not fail the check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from dlqat import atomic, badge, own_folder
from dlqat.runtime_tests.report import page
from dlqat.visible import code, line
from dlqat.visible import markdown as escaped

FORMAT = 1
Status = Literal["passed", "failed", "not verified"]


@dataclass(frozen=True, slots=True)
class Check:
    """One judged statement. `summary` is a sentence with the figures or the reason; `figures` are for programs."""

    rung: str
    name: str
    status: Status
    summary: str
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])
    table: Sequence[Mapping[str, Any]] = ()
    """Rows of equal keys that belong to the figures (one per length, per factor, ...)."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run of dlqat-check found."""

    artifact: str
    reference: str
    device: str
    command: str
    seconds: float
    facts: Mapping[str, Any]
    versions: Mapping[str, str]
    checks: tuple[Check, ...]
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes by component; empty if the program could not be read."""
    accuracy: Mapping[str, Any] | None = None
    """The result file of dlqat-eval, if it is about these bytes and this reference on this device."""

    @property
    def verdict(self) -> Status:
        """failed if anything failed, passed if something passed, else not verified."""
        found = {c.status for c in self.checks}
        return "failed" if "failed" in found else "passed" if "passed" in found else "not verified"


def as_dict(report: Report) -> dict[str, Any]:
    """The content of report.json. Numbers that JSON does not have (NaN, infinity) become null."""
    return plain({"format": FORMAT, "verdict": report.verdict, **asdict(report)})


def schema() -> dict[str, Any]:
    """JSON Schema of report.json."""
    found = msgspec.json.schema(Report)
    fields = found["$defs"][Report.__name__]
    fields["properties"] = {
        "format": {"const": FORMAT},
        "verdict": {"enum": list(get_args(Status))},
        **fields["properties"],
    }
    fields["required"] = list(fields["properties"])
    return found


def write(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write report.json, report.md, report.html and badge.svg into `folder`, each atomically."""
    paths = folder / "report.json", folder / "report.md", folder / "report.html", folder / badge.NAME
    content = as_dict(report)
    atomic.text(paths[0], json.dumps(content, indent=1, allow_nan=False) + "\n")
    atomic.text(paths[2], page.html(content))
    atomic.text(paths[1], "\n".join(markdown(report)) + "\n")
    atomic.text(paths[3], badge.svg(content))
    if own_folder.marked(folder):
        own_folder.note(folder, *paths)
    return paths


def markdown(report: Report) -> Iterator[str]:
    """The lines of report.md."""
    yield f"# dlqat-check: {report.verdict}"
    yield ""
    artifact, reference, device = map(code, (report.artifact, report.reference, report.device))
    yield f"Artifact {artifact} against {reference} on device {device}, {report.seconds:.0f} s."
    yield ""
    yield f"    {line(report.command)}"
    yield ""
    yield from table(
        ("rung", "check", "status", "result"), ((c.rung, c.name, c.status, c.summary) for c in report.checks)
    )
    for check in report.checks:
        if check.table:
            yield ""
            yield f"## {check.rung} {escaped(check.name)}"
            yield ""
            keys = tuple(check.table[0])
            yield from table(keys, (tuple(show(row[k]) for k in keys) for row in check.table))
    yield ""
    yield "## Where it ran"
    yield ""
    yield from table(("fact", "value"), ((k, show(v)) for k, v in {**report.facts, **report.versions}.items()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table of plain texts."""
    yield f"| {' | '.join(map(escaped, head))} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"


def show(value: Any) -> str:
    """A value as people read it."""
    match value:
        case float():
            return f"{value:.3g}"
        case dict():
            return ", ".join(f"{k} {show(v)}" for k, v in value.items())
        case list() | tuple():
            return ", ".join(show(v) for v in value)
        case _:
            return str(value)


def plain(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinity become null."""
    match value:
        case dict():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
