# SPDX-License-Identifier: Apache-2.0
"""The course of a training run as one picture: loss, learning rate and speed over the steps.

A step's loss is that of a few sequences and jumps from step to step; the smoothed line (exponential
average, started without bias as Adam's) is the one to read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlqat import atomic
from dlqat.refusal import Refusal
from dlqat.trainer import held_out
from dlqat.trainer.held_out import HeldRow

NEEDED = ("step", "loss", "lr", "tokens_per_second", "tokens")
Columns = dict[str, NDArray[np.float64]]


def write(log: Path, target: Path, title: str = "") -> None:
    """Draw the training log `log` (one JSON row a step), and what was held out if its file is beside it, into the PNG file
    `target`, atomically.

    Refusal if the log is missing, empty or damaged, or matplotlib is not installed."""
    columns = read(log)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Refusal("the loss plot needs matplotlib: pip install 'dlqat[train]'") from error
    # Figure and canvas by hand: pyplot keeps every figure and looks for a display.
    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure, columns, held_out.read(log.parent / held_out.FILE), title)
    with atomic.file(target) as draft:
        figure.savefig(draft, format="png", dpi=130)


def read(log: Path) -> Columns:
    """The log's columns, float64 [steps]. A last line that is still being written is left out."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError as error:
        raise Refusal(f"{log} does not exist; train first") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            rows.append({key: float(row[key]) for key in NEEDED})
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{log}:{number}: not a row of a training log ({error})") from error
    if not rows:
        raise Refusal(f"{log} has no rows yet")
    return {key: np.array([row[key] for row in rows]) for key in NEEDED}


def smooth(values: NDArray[np.float64], window: float) -> NDArray[np.float64]:
    """Exponential average over about `window` values, [n] -> [n]; the first is the first value itself."""
    keep, average, weight = 1 - 1 / max(1.0, window), 0.0, 0.0
    result = np.empty_like(values)
    for i, value in enumerate(values):
        average = keep * average + (1 - keep) * value if keep else value
        weight = keep * weight + (1 - keep) if keep else 1.0
        result[i] = average / weight
    return result


def _draw(figure: Any, columns: Columns, held: Sequence[HeldRow], title: str) -> None:
    loss_axes, rate_axes, speed_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    step, loss = columns["step"], columns["loss"]
    line = smooth(loss, len(loss) / 10)
    loss_axes.plot(step, loss, color="#9db8d9", linewidth=1, marker="." if len(loss) < 60 else "", label="one step")
    loss_axes.plot(step, line, color="#1f4e96", linewidth=2, label="smoothed")
    if held:
        steps, losses = [row.step for row in held], [row.loss for row in held]
        loss_axes.plot(steps, losses, color="#b3541e", marker="o", linewidth=1, label="held out")
    loss_axes.annotate(
        f"{line[-1]:.4f}", (step[-1], line[-1]), (0, 8), textcoords="offset points", ha="right", color="#1f4e96"
    )
    loss_axes.set_ylabel("loss (nats per token)")
    loss_axes.legend(frameon=False)
    loss_axes.set_title(title or f"{columns['tokens'][-1]:,.0f} tokens", loc="left")
    rate_axes.plot(step, columns["lr"], color="#b3541e")
    rate_axes.set_ylabel("learning rate")
    speed_axes.plot(step, columns["tokens_per_second"], color="#3c7a3c")
    speed_axes.set_ylabel("tokens/s")
    speed_axes.set_xlabel("step")
    for axes in (loss_axes, rate_axes, speed_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (rate_axes, speed_axes):
        axes.set_ylim(bottom=0)
