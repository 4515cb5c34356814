# SPDX-License-Identifier: Apache-2.0
"""What a run tells: a progress bar for the person, one JSON line a step for everything else."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from dlqat.progress import Bars
from dlqat.refusal import Refusal

FILE = "training_log.jsonl"
RECENT = 10
"""Steps over which the speed on the screen is a mean."""


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

    def __init__(self, path: Path, progress: Bars, steps: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=steps, completed=done)
        self._last = deque[StepRow](maxlen=RECENT)
        if path.is_symlink():
            raise Refusal(f"{path} is a symbolic link; remove it")
        rows = path.read_text(encoding="utf-8").splitlines()[:done] if path.exists() else []
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._file.writelines(f"{row}\n" for row in rows)

    def __call__(self, row: StepRow) -> None:
        self._file.write(json.dumps(asdict(row)) + "\n")
        self._last.append(row)
        speed = sum(r.tokens_per_second * r.seconds for r in self._last) / sum(r.seconds for r in self._last)
        note = f"loss {row.loss:.4f}, {speed:.0f} tokens/s"
        self._progress.update(self._task, completed=row.step, note=note)

    def close(self) -> None:
        self._file.close()
