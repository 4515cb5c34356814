# SPDX-License-Identifier: Apache-2.0
"""What a result file of dlqat-eval must look like to be judged and drawn: numbers where numbers are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from dlqat import json_file


class Interval(msgspec.Struct, frozen=True):
    """A figure with the ends of its interval; None: there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Difference(Interval, frozen=True):
    """Of two models on the same questions."""

    better: int = 0
    worse: int = 0


class Metric(msgspec.Struct, frozen=True):
    """One task and metric."""

    questions: int
    artifact: Interval | None = None
    reference: Interval | None = None
    difference: Difference | None = None
    base: Interval | None = msgspec.field(default=None, name="float")
    from_float: Difference | None = None
    higher_is_better: bool | None = None


class Text(msgspec.Struct, frozen=True):
    """Perplexity."""

    tokens: int
    artifact: Interval | None = None
    reference: Interval | None = None
    difference_nats: Interval | None = None
    base: Interval | None = msgspec.field(default=None, name="float")
    from_float_nats: Interval | None = None
    answers: int | None = None


class Program(msgspec.Struct, frozen=True):
    """What was measured."""

    sha256: str


class Result(msgspec.Struct, frozen=True):
    """eval-DEVICE.json."""

    program: Program
    setting: str
    tasks: dict[str, dict[str, Metric]]
    command: str = ""
    text: Text | None = None
    facts: dict[str, dict[str, Any]] = {}
    versions: dict[str, Any] = {}
    reference: str | None = None
    reference_sha256: str | None = None


def checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """`content` itself. Refusal if it is no result; {} (no file) passes."""
    if content:
        json_file.convert(content, Result, str(path))
    return content
