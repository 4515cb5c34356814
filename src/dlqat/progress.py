# SPDX-License-Identifier: Apache-2.0
"""How far the work is: bars on a terminal, which fit 80 columns; in a pipe or a file, a line now and then.

A task says in `note` what is going on (the name of a layer, the loss); what does not fit of it is cut, not the numbers.
"""

from __future__ import annotations

import time
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from dlqat.terminal import Terminal

LINE_SECONDS = 15.0
"""How often a pipe gets a line of a task that goes on."""
SPEED_SECONDS = 120.0
"""The time left follows the speed of so many last seconds: a neighbour on the machine slows some steps, not all."""


def _fixed(**more: Any) -> Column:
    return Column(no_wrap=True, **more)


class Bars(Progress):
    """Tasks as rich's Progress has them. quiet: nothing is shown; transient: bars go when the work is done."""

    def __init__(self, console: Terminal, *, quiet: bool = False, transient: bool = False) -> None:
        columns = (
            TextColumn("{task.description}", markup=False, table_column=_fixed(max_width=30)),
            BarColumn(bar_width=12, table_column=_fixed(min_width=12)),
            MofNCompleteColumn(table_column=_fixed(min_width=5)),
            TextColumn("{task.fields[note]}", markup=False, table_column=_fixed(ratio=1, overflow="ellipsis")),
            TimeElapsedColumn(table_column=_fixed(min_width=7)),
            TimeRemainingColumn(table_column=_fixed(min_width=7)),
        )
        piped = not console.is_terminal
        super().__init__(
            *columns,
            console=console,
            disable=quiet or piped,
            transient=transient,
            expand=True,
            speed_estimate_period=SPEED_SECONDS,
        )
        self._piped = piped and not quiet
        self._told: dict[TaskID, float] = {}

    def add_task(self, description: str, *args: Any, **fields: Any) -> TaskID:
        return super().add_task(description, *args, **{"note": "", **fields})

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        if self._piped:
            self._line(task_id, self._tasks[task_id])

    def _line(self, number: TaskID, task: Task) -> None:
        now, last = time.monotonic(), self._told.get(number)
        if last is not None and (last < 0 or (now - last < LINE_SECONDS and not task.finished)):
            return
        self._told[number] = -1.0 if task.finished else now  # one line of the end
        text = f"{task.description} {task.completed:g}/{task.total:g}" if task.total else task.description
        said = [text, str(task.fields["note"]), f"{_clock(task.time_remaining)} left" if task.time_remaining else ""]
        self.console.print(": ".join([said[0], ", ".join(filter(None, said[1:]))]).rstrip(": "), soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
