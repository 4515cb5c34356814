# SPDX-License-Identifier: Apache-2.0
r"""Text that came from a file or a device, as it may be shown.

A name in a model can hold characters that move a terminal's cursor, colour a failure green, turn the order of letters, or
end a line of Markdown. They are shown as what they are (\x1b), so nothing that a stranger wrote acts on a reader.
"""

from __future__ import annotations

import re

_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but tab and line feed
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"  # order of letters, separators of lines
    "\ud800-\udfff]"  # halves of characters, which cannot be written at all
)
_MARKDOWN = re.compile(r"[\\`*<>|~&#]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)


def visible(text: object) -> str:
    """The text with everything that is no letter, space, tab or line feed written out."""
    return _ACTING.sub(_written, str(text))


def line(text: object) -> str:
    """The same on one line."""
    return visible(text).replace("\n", r"\n").replace("\t", " ")


def markdown(text: object) -> str:
    """Plain text inside a line of Markdown or a cell of a table: it marks nothing up, and names no address to follow."""
    return _MARKDOWN.sub(r"\\\g<0>", line(text))


def code(text: object) -> str:
    """A code span of Markdown."""
    shown = line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def _written(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
