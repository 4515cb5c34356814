# SPDX-License-Identifier: Apache-2.0
"""How far an evaluation is, how fast it goes and how long it will take: a bar, or a line now and then in a log.

What was answered in an earlier run counts as done, and not for the rate.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from dlqat.runtime_tests.eval.journaled_model import Tell
from dlqat.terminal import Terminal

LINE_SECONDS = 30.0
"""How often a log gets a line."""


@contextmanager
def shown(console: Terminal, name: str, unit: str) -> Generator[Tell]:
    """Give what must be told (done, total); the first call says how many were known before."""
    if not console.is_terminal:
        yield _Lines(console, name, unit).tell
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Left(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task, pace = bar.add_task(f"{name}: {unit}", total=None, pace=_Pace()), None

        def tell(done: int, total: int) -> None:
            nonlocal pace
            pace = pace or _Pace(done)
            pace.done = done
            bar.update(task, total=total, completed=done, pace=pace)

        yield tell


@dataclass
class _Pace:
    """Answers since the first call: they come in batches, so a rate over the last seconds would jump."""

    known: int = 0
    done: int = 0
    start: float = field(default_factory=time.monotonic)

    def text(self, total: float | None) -> str:
        """As in 3.2/s, 2:10 left."""
        if total is None or self.done <= self.known or self.done >= total:
            return ""
        rate = (self.done - self.known) / max(time.monotonic() - self.start, 1e-9)
        left = round((total - self.done) / rate)
        hours, rest = divmod(left, 3600)
        clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
        return f"{rate:.1f}/s, {clock} left" if rate >= 1 else f"{1 / rate:.1f} s each, {clock} left"


class _Left(ProgressColumn):
    """The pace, in a bar."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["pace"].text(task.total), style="progress.remaining")


class _Lines:
    """The same for a console that is a file or a pipe."""

    def __init__(self, console: Terminal, name: str, unit: str) -> None:
        self.console, self.name, self.unit = console, name, unit
        self.pace: _Pace | None = None
        self.last = 0.0

    def tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.pace is None:
            self.pace, self.last = _Pace(done), now
            self._print(f"{total} {self.unit}{f', {done} of them known' if done else ''}")
        elif done == total or now - self.last >= LINE_SECONDS:
            self.last, self.pace.done = now, done
            left = self.pace.text(total)
            self._print(f"{done} of {total} {self.unit}{f', {left}' if left else ''}")

    def _print(self, text: str) -> None:
        self.console.print(f"{self.name}: {text}", soft_wrap=True)
