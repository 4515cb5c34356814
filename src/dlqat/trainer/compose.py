# SPDX-License-Identifier: Apache-2.0
"""What the choices of dlqat-train come to: the recipe, the method, the start and the data; refused where they contradict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlqat import recipe
from dlqat.recipe import BLOCKS, Recipe, Rule
from dlqat.refusal import Refusal
from dlqat.trainer.methods.by_name import parse
from dlqat.trainer.methods.method import Method
from dlqat.trainer.options import INITS, Options

DLQAT = "dlqat"
TWO_BITS = "blocks"
"""Start of a model with 2 bits: 40 steps do not bring it back from rounding to nearest (docs/training.md)."""
UNTRAINED = {"rank": 0, "magnitude": False, "train_scales": False}


def rules(grid: Recipe, blocks: Mapping[str, Any], adapters: Mapping[str, Any] | None, file: Path | None) -> Recipe:
    """`grid`, more of the blocks' fields, what is trained in them (None: nothing), and the rules of a file after that."""
    found = [*grid.rules, Rule(BLOCKS, {**blocks, **(UNTRAINED if adapters is None else adapters)})]
    if file is not None:
        found += recipe.read(file).rules
    if adapters is None:  # only what a method without training reads: other choices make no other result
        found.append(Rule(BLOCKS, UNTRAINED))
    # Through parse once more: the options of the command line are checked as those of a recipe file.
    return recipe.parse(recipe.tables(Recipe(tuple(found))), "options")


def method(name: str, settings: list[str], then: str, init: str | None) -> Method | None:
    """The method of that name; None: DL-QAT by itself. Refusal for options that belong to the other."""
    if then not in ("", DLQAT):
        raise Refusal(f"--then {then} is not {DLQAT}")
    if name == DLQAT:
        if settings or then:
            raise Refusal("--set and --then belong to another --method than dlqat")
        return None
    if init is not None:
        raise Refusal(f"--init is of --method dlqat; with --method {name} the method makes the start")
    return parse(name, settings)


def start_of(asked: Recipe, method: Method | None) -> str:
    """The start of a model for which --init says none."""
    two = method is None and any(rule.changes.get("bits") == 2 for rule in asked.rules)
    return TWO_BITS if two else Options().init


def sources(data: list[str], method: Method | None, then: str) -> tuple[str, ...]:
    """What is read of --data: nothing by a method that needs no text. Refusal if text is needed and there is none."""
    needed = "training" if method is None or then else "calibration" if method.calibrated or method.influenced else ""
    if needed and not data:
        raise Refusal(f"--data is missing: {needed} needs text (or --data self: the model writes it)")
    return tuple(data) if needed else ()


def check(options: Options, parallel: str) -> None:
    """Refusal for a choice that is not known, or numbers that make no sense."""
    choices = {
        "--init": (options.init, INITS),
        "--precision": (options.precision, ("bf16", "fp32")),
        "--parallel": (parallel, ("ddp", "fsdp")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise Refusal(f"{name} {value} is not one of {', '.join(known)}")
    if (reason := options.refuses()) is not None:
        raise Refusal(reason)
