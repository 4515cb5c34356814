# SPDX-License-Identifier: Apache-2.0
"""Small charts as inline SVG: colours come from the page's CSS, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

HIGHEST = 120.0
"""dB: beyond it nothing was rounded."""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 240, 72, 28, 14
LABELS = HEIGHT - 6
"""Where the letters under a chart stand."""


def histogram(edges: Sequence[float], series: Mapping[str, Sequence[int]], unit: str) -> str:
    """Bars side by side per bin, as shares of each series. All bins, so that two charts can be compared."""
    if not any(any(counts) for counts in series.values()):
        return ""
    first, last = 0, len(edges) - 2
    shares = {name: [c / max(1, sum(counts)) for c in counts] for name, counts in series.items()}
    top = max(max(values) for values in shares.values())
    step = (WIDTH - LEFT) / (last - first + 1)
    parts = [_axis(top)]
    for order, (name, values) in enumerate(shares.items()):
        width = 0.86 * step / len(shares)
        for i in range(first, last + 1):
            height = (HEIGHT - BOTTOM - TOP) * values[i] / top
            x = LEFT + (i - first + 0.07) * step + order * width
            label = f"{name}: {values[i]:.1%} between 1e{edges[i]:g} and 1e{edges[i + 1]:g} {unit}"
            parts.append(_bar(x, HEIGHT - BOTTOM - height, width, height, f"s{order}", label))
    for i in range(first, last + 2, 2):
        end = "start" if i == first else "end" if i == last + 1 else "middle"
        parts.append(_text(LEFT + (i - first) * step, LABELS, f"1e{edges[i]:g}", end, minor=i % 6 != 0))
    return _svg(parts, f"Histogram of {', '.join(series)} in {unit}") + _legend(series)


def points(names: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> str:
    """One point per name and series, names in order along x; values from HIGHEST on are left out."""
    values = [v for row in series.values() for v in row if v < HIGHEST]
    if not values:
        return ""
    low, high = min(0.0, *values), max(values) * 1.05 or 1.0
    across = (WIDTH - LEFT - 8) / max(1, len(names) - 1)
    parts = [_axis_values(low, high, f"{{:.0f}} {unit}")]
    for order, (label, row) in enumerate(series.items()):
        for i, (name, value) in enumerate(zip(names, row, strict=True)):
            if value >= HIGHEST:
                continue
            x, y = LEFT + 4 + i * across, TOP + (HEIGHT - BOTTOM - TOP) * (high - value) / (high - low)
            title = escape(f"{name}, {label}: {value:.1f} {unit}")
            parts.append(f'<circle class="s{order}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{title}</title></circle>')
    parts.append(_text(LEFT, LABELS, "first linear", "start"))
    parts.append(_text(WIDTH, LABELS, "last linear", "end"))
    return _svg(parts, f"{unit} of {len(names)} linears") + _legend(series)


def stack(parts: Mapping[str, int]) -> str:
    """One bar cut into shares, with a legend of sizes in MB."""
    total, x, drawn = sum(parts.values()) or 1, 0.0, list[str]()
    for order, (name, size) in enumerate(parts.items()):
        width = WIDTH * size / total
        drawn.append(_bar(x, 0, width, 28, f"s{order}", f"{name}: {size / 1e6:.1f} MB"))
        x += width
    legend = {f"{name} {size / 1e6:.1f} MB": () for name, size in parts.items()}
    return _svg(drawn, "Bytes by component", height=28) + _legend(legend)


def interval(low: float, value: float, high: float, order: int) -> str:
    """A share with its interval on an axis from 0 to 1."""
    scale = 160
    return _svg(
        [
            f'<line class="grid" x1="0" x2="{scale}" y1="8" y2="8"/>',
            f'<line class="s{order} bar" x1="{low * scale:.1f}" x2="{high * scale:.1f}" y1="8" y2="8"/>',
            f'<circle class="s{order}" cx="{value * scale:.1f}" cy="8" r="4"/>',
        ],
        f"{value:.1%}",
        width=scale,
        height=16,
    ).replace("<svg ", '<svg class="small" ', 1)


def _axis(top: float) -> str:
    return _axis_values(0, top, "{:.0%}")


def _axis_values(low: float, high: float, shown: str) -> str:
    lines: list[str] = []
    for step in range(5):
        y = TOP + (HEIGHT - BOTTOM - TOP) * step / 4
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        value = shown.format(high - (high - low) * step / 4)
        lines.append(_text(LEFT - 6, y + 4, value, "end", minor=step % 2 == 1))
    return "".join(lines)


def _bar(x: float, y: float, width: float, height: float, kind: str, label: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0):.1f}"'
    return f'<rect class="{kind}" {place}><title>{escape(label)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str, *, minor: bool = False) -> str:
    kind = ' class="minor"' if minor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def _svg(parts: Sequence[str], label: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _legend(series: Mapping[str, object]) -> str:
    items = (f'<span><i class="s{i}"></i>{escape(name)}</span>' for i, name in enumerate(series))
    return f'<p class="legend">{"".join(items)}</p>'
