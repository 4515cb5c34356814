# SPDX-License-Identifier: Apache-2.0
"""What a report's page is made of, as values; page_template/report.html.jinja draws each kind."""

from __future__ import annotations

from dataclasses import dataclass

from dlqat.runtime_tests.report.charts import Chart


@dataclass(frozen=True, slots=True)
class Mark:
    """A status in its colour."""

    status: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart with words beside it."""

    chart: Chart
    text: str


Cell = str | Mark | Drawn


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `soft`: a remark."""

    text: str
    soft: bool = False
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: str = "heading"


@dataclass(frozen=True, slots=True)
class Code:
    """Something to type."""

    text: str
    kind: str = "code"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head; `numbers`: columns of figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: tuple[int, ...] = ()
    style: str = "plain"
    kind: str = "table"


@dataclass(frozen=True, slots=True)
class Details:
    """A table that opens when it is asked for."""

    summary: str
    table: Table
    kind: str = "details"


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its caption, and the check that it belongs to."""

    chart: Chart
    caption: str = ""
    title: str = ""
    status: str = ""
    kind: str = "figure"


Part = Text | Heading | Code | Table | Details | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """One card of the page."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """The whole."""

    verdict: str
    artifact: str
    device: str
    reference: str
    emulated: tuple[str, ...]
    sections: tuple[Section, ...]
