# SPDX-License-Identifier: Apache-2.0
"""dlqat-train --dry-run: the memory that a run will take, by component, beside what this machine has. Nothing is written."""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from rich.table import Table

from dlqat.refusal import Refusal
from dlqat.source import Source
from dlqat.terminal import Terminal
from dlqat.trainer import footprint, opened, precision
from dlqat.trainer.footprint import Footprint
from dlqat.trainer.options import Options
from dlqat.trainer.request import TrainRequest


def run(request: TrainRequest, console: Terminal) -> None:
    """Print it. Refusal if the machine does not have it."""
    origin = opened.origin(request, console)
    found, has = needed(request, origin), memory()
    table = Table("memory", "GB", title=f"{origin.text}: at its peak, one process", title_justify="left")
    for name, size in found.parts().items():
        table.add_row(name, _gb(size))
    table.add_row("together", _gb(found.total))
    Terminal().print(table)
    if (reason := short(request, origin, found, has)) is not None:
        raise Refusal(reason)


def needed(request: TrainRequest, origin: Source, options: Options | None = None) -> Footprint:
    """Of a request, or of it with other options."""
    options = options or request.options
    wide = precision.chosen(options.precision, precision.device()) == "fp32"
    stored = 4 if wide else origin.stored.dtype.itemsize
    return footprint.of(origin.decoder, request.recipe, options, 4 if wide else 2, stored)


def short(request: TrainRequest, origin: Source, found: Footprint, has: int) -> str | None:
    """Why this machine cannot hold the run, and what would fit; None if it can."""
    if found.total <= has:
        return None
    said = f"training takes about {_gb(found.total)} GB, and this {_where()} has {_gb(has)}"
    for words, changes in _SMALLER.items():
        less = needed(request, origin, replace(request.options, **changes))
        if less.total <= has:
            return f"{said}; with {words} it takes {_gb(less.total)}"
    return f"{said}; --base-bits 8 halves the frozen weights, a shorter --sequence-length what is remembered"


_SMALLER: dict[str, dict[str, int | bool]] = {
    "--gradient-checkpointing": {"gradient_checkpointing": True},
    "--gradient-checkpointing --micro-batch 1": {"gradient_checkpointing": True, "micro_batch": 1},
}


def memory() -> int:
    """Bytes of the device that trains here."""
    if precision.device() == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _where() -> str:
    return "GPU" if precision.device() == "cuda" else "machine"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e8 else f"{size / 1e9:.2f}"
