# SPDX-License-Identifier: Apache-2.0
"""How far an evaluation is, and how long it will take. What was answered in an earlier run counts as done, and not for the
rate."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from dlqat.progress import Bars
from dlqat.runtime_tests.eval.journaled_model import Tell
from dlqat.terminal import Terminal


@contextmanager
def shown(console: Terminal, name: str, unit: str) -> Generator[Tell]:
    """Give what must be told (done, total); the first call says how many were known before."""
    with Bars(console, transient=True) as bars:
        task, known = bars.add_task(f"{name}: {unit}"), None

        def tell(done: int, total: int) -> None:
            nonlocal known
            known = done if known is None else known
            bars.update(task, total=total, completed=done, note=f"{known} of them known" if known else "")

        yield tell
