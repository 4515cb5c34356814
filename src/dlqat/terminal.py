# SPDX-License-Identifier: Apache-2.0
"""What our commands print goes through here: no text is markup, and no character acts on the terminal (visible.py).

Colours come from Text and styles. rich's own movements of the cursor (bars) are marked as such, and pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from dlqat.visible import visible


class Terminal(Console):
    """A console for text that strangers wrote a part of."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def starting() -> None:
    """A line for the person who waits while PyTorch and transformers are imported; none in a pipe."""
    if sys.stderr.isatty() and "transformers" not in sys.modules:
        print("starting ...", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Lines on stdout, as wide as they are: for programs and for copying."""
    print(visible(text))


def say_json(content: Any) -> None:
    """JSON on stdout; it escapes by itself."""
    print(json.dumps(content, indent=1))


def complain(text: str) -> None:
    """A line on stderr."""
    print(visible(text), file=sys.stderr)
