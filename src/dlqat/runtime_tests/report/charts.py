# SPDX-License-Identifier: Apache-2.0
"""Small charts as values: what stands where. page_template/ draws them; colours come from the page's CSS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

HIGHEST = 120.0
"""dB: beyond it nothing was rounded."""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 240, 72, 28, 14
LABELS = HEIGHT - 6
"""Where the letters under a chart stand."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle; `title` is shown under the pointer."""

    x: str
    y: str
    width: str
    height: str
    series: int
    title: str
    kind: str = "bar"


@dataclass(frozen=True, slots=True)
class Dot:
    """A point."""

    x: str
    y: str
    radius: str
    series: int
    title: str
    kind: str = "dot"


@dataclass(frozen=True, slots=True)
class Line:
    """A horizontal line from `x` to `to`; without a series one of the grid."""

    x: str
    to: str
    y: str
    series: int | None = None
    kind: str = "line"


@dataclass(frozen=True, slots=True)
class Label:
    """Letters; `minor`: left out on a phone."""

    x: str
    y: str
    text: str
    anchor: str
    minor: bool = False
    kind: str = "label"


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with what it shows in words. Without shapes there is nothing to show."""

    label: str = ""
    shapes: tuple[Bar | Dot | Line | Label, ...] = ()
    legend: tuple[str, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    small: bool = False


def histogram(edges: Sequence[float], series: Mapping[str, Sequence[int]], unit: str) -> Chart:
    """Bars side by side per bin, as shares of each series. All bins, so that two charts can be compared."""
    if not any(any(counts) for counts in series.values()):
        return Chart()
    bins = len(edges) - 1
    shares = {name: [c / max(1, sum(counts)) for c in counts] for name, counts in series.items()}
    top = max(max(values) for values in shares.values())
    step = (WIDTH - LEFT) / bins
    parts: list[Bar | Line | Label] = [*_axis(0, top, "{:.0%}")]
    for order, (name, values) in enumerate(shares.items()):
        width = 0.86 * step / len(shares)
        for i in range(bins):
            height = (HEIGHT - BOTTOM - TOP) * values[i] / top
            x = LEFT + (i + 0.07) * step + order * width
            label = f"{name}: {values[i]:.1%} between 1e{edges[i]:g} and 1e{edges[i + 1]:g} {unit}"
            parts.append(_bar(x, HEIGHT - BOTTOM - height, width, height, order, label))
    for i in range(0, bins + 1, 2):
        end = "start" if i == 0 else "end" if i == bins else "middle"
        parts.append(_label(LEFT + i * step, LABELS, f"1e{edges[i]:g}", end, minor=i % 6 != 0))
    return Chart(f"Histogram of {', '.join(series)} in {unit}", tuple(parts), tuple(series))


def points(names: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> Chart:
    """One point per name and series, names in order along x; values from HIGHEST on are left out."""
    values = [v for row in series.values() for v in row if v < HIGHEST]
    if not values:
        return Chart()
    low, high = min(0.0, *values), max(values) * 1.05 or 1.0
    across = (WIDTH - LEFT - 8) / max(1, len(names) - 1)
    parts: list[Dot | Line | Label] = [*_axis(low, high, f"{{:.0f}} {unit}")]
    for order, (label, row) in enumerate(series.items()):
        for i, (name, value) in enumerate(zip(names, row, strict=True)):
            if value < HIGHEST:
                x, y = LEFT + 4 + i * across, TOP + (HEIGHT - BOTTOM - TOP) * (high - value) / (high - low)
                parts.append(Dot(f"{x:.1f}", f"{y:.1f}", "2.6", order, f"{name}, {label}: {value:.1f} {unit}"))
    parts.append(_label(LEFT, LABELS, "first linear", "start"))
    parts.append(_label(WIDTH, LABELS, "last linear", "end"))
    return Chart(f"{unit} of {len(names)} linears", tuple(parts), tuple(series))


def stack(sizes: Mapping[str, int]) -> Chart:
    """One bar cut into shares, with a legend of sizes in MB."""
    total, x, drawn = sum(sizes.values()) or 1, 0.0, list[Bar]()
    for order, (name, size) in enumerate(sizes.items()):
        width = WIDTH * size / total
        drawn.append(_bar(x, 0, width, 28, order, f"{name}: {size / 1e6:.1f} MB"))
        x += width
    legend = tuple(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    return Chart("Bytes by component", tuple(drawn), legend, height=28)


def interval(low: float, value: float, high: float, order: int) -> Chart:
    """A share with its interval on an axis from 0 to 1."""
    scale = 160
    shapes = (
        Line("0", str(scale), "8"),
        Line(f"{low * scale:.1f}", f"{high * scale:.1f}", "8", order),
        Dot(f"{value * scale:.1f}", "8", "4", order, f"{value:.1%}"),
    )
    return Chart(f"{value:.1%}", shapes, width=scale, height=16, small=True)


def _axis(low: float, high: float, shown: str) -> Iterator[Line | Label]:
    for step in range(5):
        y = TOP + (HEIGHT - BOTTOM - TOP) * step / 4
        yield Line(str(LEFT), str(WIDTH), f"{y:.1f}")
        yield _label(LEFT - 6, y + 4, shown.format(high - (high - low) * step / 4), "end", minor=step % 2 == 1)


def _bar(x: float, y: float, width: float, height: float, series: int, title: str) -> Bar:
    return Bar(f"{x:.1f}", f"{y:.1f}", f"{width:.1f}", f"{max(height, 0):.1f}", series, title)


def _label(x: float, y: float, text: str, anchor: str, *, minor: bool = False) -> Label:
    return Label(f"{x:.1f}", f"{y:.1f}", text, anchor, minor)
