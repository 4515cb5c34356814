# SPDX-License-Identifier: Apache-2.0
"""How far an evaluation is, how fast it goes and how long it will take: a bar, or a line now and then in a log.

What was answered in an earlier run counts as done, and not for the rate.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from dlqat.runtime_tests.subject import Tell

LINE_SECONDS = 30.0
"""How often a log gets a line."""


@contextmanager
def shown(console: Console, name: str, unit: str) -> Generator[Tell]:
    """Give what must be told (done, total); the first call says how many were known before."""
    if not console.is_terminal:
        yield _Lines(console, name, unit).tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{name}: {unit}", total=None)
        first = True

        def tell(done: int, total: int) -> None:
            nonlocal first
            if first:
                bar.reset(task, total=total, completed=done)
                first = False
            else:
                bar.update(task, completed=done)

        yield tell


class _Rate(ProgressColumn):
    """As in 3.2/s, 2:10 left."""

    def render(self, task: Task) -> Text:
        if task.finished or not task.speed or task.remaining is None:
            return Text("")
        return Text(_rate(task.speed, task.remaining), style="progress.remaining")


class _Lines:
    """The same for a console that is a file or a pipe."""

    def __init__(self, console: Console, name: str, unit: str) -> None:
        self.console, self.name, self.unit = console, name, unit
        self.start: tuple[float, int] | None = None
        self.last = 0.0

    def tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.start is None:
            self.start, self.last = (now, done), now
            known = f", {done} of them known" if done else ""
            self._print(f"{total} {self.unit}{known}")
        elif done == total or now - self.last >= LINE_SECONDS:
            self.last = now
            rate = (done - self.start[1]) / max(now - self.start[0], 1e-9)
            left = "" if done == total else f", {_rate(rate, total - done)}"
            self._print(f"{done} of {total} {self.unit}{left}")

    def _print(self, text: str) -> None:
        self.console.print(f"{self.name}: {text}", markup=False, highlight=False, soft_wrap=True)


def _rate(per_second: float, remaining: float) -> str:
    left = round(remaining / per_second)
    hours, rest = divmod(left, 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
    return f"{per_second:.1f}/s, {clock} left" if per_second >= 1 else f"{1 / per_second:.1f} s each, {clock} left"
