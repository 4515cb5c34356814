# SPDX-License-Identifier: Apache-2.0
"""badge.svg: what a check found, in one line for a README. Drawn from report.json; it loads nothing from anywhere.

Green says that the integers were verified and nothing failed; how far the check went on which device, the report says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME = "badge.svg"
LABEL = "dlqat"
GREEN, RED, GREY = "#3c8a4d", "#b5443a", "#6b6b6b"
WIDTH, MARGIN = 6.6, 6
"""Pixels of a character, and beside the words. textLength makes every font as wide."""

_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="20" role="img" aria-label="{label}: {message}">
<title>{label}: {message}</title>
<rect width="{whole}" height="20" rx="3" fill="{colour}"/>
<path d="M3 0H{left}V20H3A3 3 0 0 1 0 17V3A3 3 0 0 1 3 0" fill="#444"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{margin}" y="14" textLength="{label_width}">{label}</text>
<text x="{at}" y="14" textLength="{message_width}">{message}</text>
</g>
</svg>
"""


def said(report: Mapping[str, Any]) -> tuple[str, str]:
    """Message and colour for the content of a report.json."""
    if report["verdict"] == "failed":
        return "check failed", RED
    compared = [c for c in report["checks"] if c["rung"] == "L0" and c["name"].startswith("integers of ")]
    if not compared or any(c["status"] != "passed" for c in compared):
        return "not verified", GREY
    bits = {c["figures"].get("bits") for c in compared} - {None}
    return ", ".join(["integers verified", *(f"{n} bit" for n in sorted(bits))]), GREEN


def svg(report: Mapping[str, Any]) -> str:
    """The picture. Nothing of a stranger's text is in it."""
    message, colour = said(report)
    widths = [round(WIDTH * len(text)) for text in (LABEL, message)]
    left = widths[0] + 2 * MARGIN
    return _SVG.format(
        label=LABEL, message=message, colour=colour, margin=MARGIN, left=left, at=left + MARGIN,
        whole=left + widths[1] + 2 * MARGIN, label_width=widths[0], message_width=widths[1],
    )  # fmt: skip
