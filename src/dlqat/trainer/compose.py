# SPDX-License-Identifier: Apache-2.0
"""What the choices of dlqat-train come to: the recipe, the method, the start and the data; refused where they contradict."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlqat import recipe
from dlqat.recipe import BLOCKS, Recipe, Rule
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal
from dlqat.trainer.methods.by_name import parse
from dlqat.trainer.methods.method import Method
from dlqat.trainer.options import INITS, Options

if TYPE_CHECKING:  # with transformers, and --help imports this file
    from dlqat.trainer.request import TrainRequest

DLQAT = "dlqat"
DEFAULT = Options()
TWO_BITS = "blocks"
"""Start of a model with 2 bits: 40 steps do not bring it back from rounding to nearest (docs/training.md)."""
UNTRAINED = {"rank": 0, "magnitude": False, "train_scales": False}


def request(
    model: str,
    output: Path,
    data: Sequence[str] = (),
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = True,
    activations: bool = True,
    rank: int = 16,
    alpha: float | None = None,
    magnitude: bool = True,
    train_scales: bool = False,
    recipe_file: Path | None = None,
    method: str = DLQAT,
    settings: Sequence[str] = (),
    then: str = "",
    init: str | None = None,
    base_bits: int = 0,
    base: str | None = None,
    chat_template: Path | None = None,
    parallel: str = "ddp",
    options: Options = DEFAULT,
) -> TrainRequest:
    """One call of dlqat-train, whose options these are (`options.init` is `init`). Refusal where they contradict."""
    compression = _method(method, list(settings), then, init)
    if compression is not None and base_bits:
        raise Refusal(f"--base-bits {base_bits} is for plain DL-QAT; leave it out with --method {method}")
    trained = compression is None or then == DLQAT
    adapters = {
        "rank": rank,
        "alpha": float(rank if alpha is None else alpha),
        "magnitude": magnitude and not train_scales,
        "train_scales": train_scales,
        **({"base_bits": base_bits} if base_bits else {}),
    }
    grid = recipe.portable(bits, group_size, 8 if activations else 0)
    checked = _rules(grid, {"symmetric": symmetric}, adapters if trained else None, recipe_file)
    options = replace(options, init=_start_of(checked, compression) if init is None else init)
    _check(options, parallel)
    if not trained:
        read = {name: getattr(options, name) for name in ("seed", "precision", "sequence_length", "calibration_tokens")}
        options = replace(Options(), steps=0, **read)
    sources = _sources(list(data), compression, then)
    with _installed():
        from dlqat.trainer.request import TrainRequest
    return TrainRequest(model, output, sources, checked, options, parallel, compression, chat_template, base)


def run(request: TrainRequest, console: Terminal) -> Path:
    """Train; model_dir. `request` is found finished, continued or begun (dlqat.trainer.run)."""
    with _installed():
        from dlqat.trainer.run import run
    return run(request, console)


@contextmanager
def _installed() -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise Refusal(f"training needs {error.name}: pip install 'dlqat[train]'") from error


def _rules(grid: Recipe, blocks: Mapping[str, Any], adapters: Mapping[str, Any] | None, file: Path | None) -> Recipe:
    """`grid`, more of the blocks' fields, what is trained in them (None: nothing), and the rules of a file after that."""
    found = [*grid.rules, Rule(BLOCKS, {**blocks, **(UNTRAINED if adapters is None else adapters)})]
    if file is not None:
        found += recipe.read(file).rules
    if adapters is None:  # only what a method without training reads: other choices make no other result
        found.append(Rule(BLOCKS, UNTRAINED))
    # Through parse once more: the options of the command line are checked as those of a recipe file.
    return recipe.parse(recipe.tables(Recipe(tuple(found))), "options")


def _method(name: str, settings: list[str], then: str, init: str | None) -> Method | None:
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


def _start_of(asked: Recipe, method: Method | None) -> str:
    """The start of a model for which --init says none."""
    two = method is None and any(rule.changes.get("bits") == 2 for rule in asked.rules)
    return TWO_BITS if two else Options().init


def _sources(data: list[str], method: Method | None, then: str) -> tuple[str, ...]:
    """What is read of --data: nothing by a method that needs no text. Refusal if text is needed and there is none."""
    needed = "training" if method is None or then else "calibration" if method.calibrated or method.influenced else ""
    if needed and not data:
        raise Refusal(f"--data is missing: {needed} needs text (or --data self: the model writes it)")
    return tuple(data) if needed else ()


def _check(options: Options, parallel: str) -> None:
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
