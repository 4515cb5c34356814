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
from dlqat.trainer.options import DLQAT, NOTHING, START, TWO_BITS, Options
from dlqat.trainer.starts.by_name import parse
from dlqat.trainer.starts.start import Start

if TYPE_CHECKING:  # with transformers, and --help imports this file
    from dlqat.trainer.own_loop import Prepared
    from dlqat.trainer.request import TrainRequest

DEFAULT = Options()
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
    text_only: bool = False,
    chat_template: Path | None = None,
    parallel: str = "ddp",
    options: Options = DEFAULT,
) -> TrainRequest:
    """One call of dlqat-train, whose options these are. Refusal where they contradict.

    `method` is `init` of which, unless `then` says dlqat, nothing follows."""
    trained = _trained(method, then, options.steps)
    if method != DLQAT and base_bits:
        raise Refusal(f"--base-bits {base_bits} is for plain DL-QAT; leave it out with --method {method}")
    adapters = {
        "rank": rank,
        "alpha": float(rank if alpha is None else alpha),
        "magnitude": magnitude and not train_scales,
        "train_scales": train_scales,
        **({"base_bits": base_bits} if base_bits else {}),
    }
    grid = recipe.portable(bits, group_size, 8 if activations else 0)
    checked = _rules(grid, _zero_points(bits, symmetric), adapters if trained else None, recipe_file)
    start = _start(method, init, settings, checked)
    _check(options, parallel)
    if not trained:
        read = {name: getattr(options, name) for name in ("seed", "precision", "sequence_length", "calibration_tokens")}
        options = replace(Options(), steps=0, **read)
    needed = "training" if trained else "calibration" if start.tokens else ""
    if needed and not data:
        raise Refusal(f"--data is missing: {needed} needs text (or --data self: the model writes it)")
    sources = tuple(data) if needed else ()
    with _installed():
        from dlqat.trainer.request import TrainRequest
    return TrainRequest(model, output, sources, checked, options, start, parallel, chat_template, base, text_only)


def for_own_loop(model: str, data: Sequence[str] = (), **choices: Any) -> TrainRequest:
    """The same for a loop of somebody's own: `data` are what the start sees; without them it is one that needs none."""
    if not data:
        choices = {"init": "mse", **choices}
    made = request(model, Path(), data or ["self"], **choices)  # data are asked of who trains; here nobody does
    if not data and made.start.tokens:
        raise Refusal("this start calibrates on text; give data, or init='mse'")
    return replace(made, data=tuple(data))


def run(request: TrainRequest, console: Terminal) -> Path:
    """Train; model_dir. `request` is found finished, continued or begun (dlqat.trainer.run)."""
    with _installed():
        from dlqat.trainer.run import run
    return run(request, console)


def foretell(request: TrainRequest, console: Terminal) -> None:
    """Print the memory that it takes; Refusal if this machine does not have it (dlqat.trainer.dry_run)."""
    with _installed():
        from dlqat.trainer import dry_run
    dry_run.run(request, console)


def prepared(request: TrainRequest, console: Terminal) -> Prepared:
    """The model of `request` at its start (dlqat.trainer.own_loop)."""
    with _installed():
        from dlqat.trainer.own_loop import prepare
    return prepare(request, console)


@contextmanager
def _installed() -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise Refusal(f"training needs {error.name}: pip install 'dlqat[train]'") from error


def _zero_points(bits: int, symmetric: bool) -> dict[str, Any]:
    """4 bits with zero-points have scales of 7 bits, so that GGUF holds them; fewer bits fit with any scale."""
    return {"symmetric": symmetric, **({"scale_bits": 7} if bits == 4 and not symmetric else {})}


def _rules(grid: Recipe, blocks: Mapping[str, Any], adapters: Mapping[str, Any] | None, file: Path | None) -> Recipe:
    """`grid`, more of the blocks' fields, what is trained in them (None: nothing), and the rules of a file after that."""
    found = [*grid.rules, Rule(BLOCKS, {**blocks, **(UNTRAINED if adapters is None else adapters)})]
    if file is not None:
        found += recipe.read(file).rules
    if adapters is None:  # only what a method without training reads: other choices make no other result
        found.append(Rule(BLOCKS, UNTRAINED))
    # Through parse once more: the options of the command line are checked as those of a recipe file.
    return recipe.parse(recipe.tables(Recipe(tuple(found))), "options")


def _trained(method: str, then: str, steps: int) -> bool:
    """Whether DL-QAT follows the start. Refusal of what says yes and no."""
    if then not in ("", DLQAT, NOTHING):
        raise Refusal(f"--then {then} is not {DLQAT} or {NOTHING}")
    if then == DLQAT and not steps:
        raise Refusal("--then dlqat trains, and --steps 0 does not; leave one out")
    return bool(steps) and (then or (DLQAT if method == DLQAT else NOTHING)) == DLQAT


def _start(method: str, init: str | None, settings: Sequence[str], asked: Recipe) -> Start:
    """The start that --method or --init names; else the default of the recipe."""
    if method != DLQAT:
        if init is not None:
            raise Refusal(f"--init {init} and --method {method} both name the start; leave one out")
        return parse(method, settings, "--method")
    two = any(rule.changes.get("bits") == 2 for rule in asked.rules)
    return parse((TWO_BITS if two else START) if init is None else init, settings)


def _check(options: Options, parallel: str) -> None:
    """Refusal for a choice that is not known, or numbers that make no sense."""
    choices = {
        "--precision": (options.precision, ("auto", "bf16", "fp32")),
        "--parallel": (parallel, ("ddp", "fsdp")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise Refusal(f"{name} {value} is not one of {', '.join(known)}")
    if (reason := options.refuses()) is not None:
        raise Refusal(reason)
