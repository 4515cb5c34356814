# SPDX-License-Identifier: Apache-2.0
"""What a run tells: a progress bar for the person, one JSON line a step for everything else."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dlqat.refusal import Refusal
from dlqat.terminal import Terminal

FILE = "training_log.jsonl"


@dataclass(frozen=True, slots=True)
class StepRow:
    """One optimizer step. loss: mean over the tokens that carry loss, in nats."""

    step: int
    loss: float
    lr: float
    tokens: int
    """Seen since the start of the run."""
    tokens_per_second: float
    seconds: float
    """Of this step."""


class Log:
    """Appends rows to the run's JSONL file and moves the bar."""

    def __init__(self, path: Path, progress: Progress, steps: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=steps, completed=done, note="")
        if path.is_symlink():
            raise Refusal(f"{path} is a symbolic link; remove it")
        rows = path.read_text(encoding="utf-8").splitlines()[:done] if path.exists() else []
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._file.writelines(f"{row}\n" for row in rows)

    def __call__(self, row: StepRow) -> None:
        self._file.write(json.dumps(asdict(row)) + "\n")
        note = f"loss {row.loss:.4f}  {row.tokens_per_second:.0f} tokens/s"
        self._progress.update(self._task, completed=row.step, note=note)

    def close(self) -> None:
        self._file.close()


@contextmanager
def bar(console: Terminal, quiet: bool = False) -> Generator[Progress]:
    """A progress display; `quiet` on all processes but the first."""
    columns = (
        TextColumn("{task.description:>18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet) as progress:
        yield progress
