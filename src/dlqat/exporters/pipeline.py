# SPDX-License-Identifier: Apache-2.0
"""From a model_dir to an artifact: folded if need be, options judged before that work, written as a whole.

cli.py says this in words of the command line; nothing here prints.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from dlqat import architecture, folder_lock, own_folder
from dlqat.architecture import Config
from dlqat.exporters import app, asked, decoder, manifest
from dlqat.exporters.storage import LayerRow
from dlqat.exporters.target import Target, chosen
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from dlqat.formats import FORMATS
from dlqat.model_dir import ADAPTERS
from dlqat.quiet import quiet
from dlqat.refusal import Refusal

DEFAULT_CONTEXT = 4096  # a runtime reserves the cache for it: 188 MB on SmolLM2-135M, 16 times that for 128k

Busy = Callable[[str], AbstractContextManager[object]]
"""Tells somebody what takes long, while it does."""


def nobody(_: str) -> AbstractContextManager[object]:
    return nullcontext()


def load(name: str) -> Target[Any]:
    """The module of a target. Refusal if there is none of that name, or its packages are not installed."""
    if name not in FORMATS:
        raise Refusal(f"target {name!r} is not known; known: {', '.join(FORMATS)}")
    try:
        with quiet():
            return cast("Target[Any]", importlib.import_module(f"dlqat.exporters.{name}.target"))
    except ModuleNotFoundError as error:
        raise Refusal(f"target {name} needs {error.name}; install it with: pip install 'dlqat[{name}]'") from error


def destination(model_dir: Path, name: str, output: Path | None) -> Path:
    """`output`, or the folder `name` of the model_dir. Refusal if it holds anything else than dlqat put there."""
    folder = output or (model_dir.parent if is_folded(model_dir) else model_dir) / name
    if os.path.realpath(folder) == os.path.realpath(Path.cwd()):
        raise Refusal(f"{folder} is the folder you are in, and would be replaced; choose another --output")
    own_folder.refuse_foreign(folder, manifest.earlier)
    return folder


def is_folded(folder: Path) -> bool:
    """Whether it is a folded/ folder itself, not a model_dir that has one."""
    return (folder / "integers.safetensors").is_file()


def _to_fold(model_dir: Path) -> ModuleType | None:
    """What folds it (with transformers, so not imported by --help), if it has adapters that are not folded yet."""
    if is_folded(model_dir) or not (model_dir / ADAPTERS).is_file():
        return None
    from dlqat.exporters import fold

    return fold if fold.stale(model_dir) else None


def fold_if_needed(model_dir: Path, base: str | None = None, busy: Busy = nobody) -> Path:
    """The folded/ folder of `model_dir`, written first if it is not of these adapters; `model_dir` itself if it is one."""
    if is_folded(model_dir):
        return model_dir
    if (fold := _to_fold(model_dir)) is not None:
        with busy(f"folding {model_dir}"):
            fold.fold(model_dir, base)
    folded = model_dir / "folded"
    if not folded.is_dir():
        if (model_dir / "training").is_dir():
            raise Refusal(f"{model_dir}: training is not finished; the same dlqat-train command continues it")
        raise Refusal(f"{model_dir} holds neither adapters nor folded/; give a folder that dlqat-train wrote")
    return folded


def config_of(model_dir: Path, base: str | None) -> Config:
    """The model's config, the base's where the fold is still to come: options are judged before that work."""
    if (fold := _to_fold(model_dir)) is not None:
        return fold.config(model_dir, base)
    return disk.read(fold_if_needed(model_dir)).config


@contextmanager
def opened(
    model_dir: Path, base: str | None, *, write: bool, busy: Busy = nobody
) -> Generator[tuple[FoldedModel, Path]]:
    """The folded model, and the folder with its tokenizer; nobody else folds while the block runs.
    Not `write`: what is not folded yet is folded in memory."""
    if not write and (fold := _to_fold(model_dir)) is not None:
        yield fold.opened(model_dir, base), model_dir
        return
    folded = fold_if_needed(model_dir, base, busy)
    with folder_lock.reading(folded):
        yield disk.read(folded), folded


def choose(
    module: Target[Any],
    target: str,
    config: Config,
    max_context: int | None = None,
    asked: Mapping[str, str | None] = {},
) -> Any:
    """The options with their defaults filled in. Refusal for a form or context that the target or model lacks."""
    longest = architecture.read(config).max_positions
    if max_context is not None and not 1 <= max_context <= longest:
        shorter = longest < int(config.get("max_position_embeddings") or 0)
        more = "; behind them it computes otherwise (docs/families.md)" if shorter else ""
        raise Refusal(f"--max-context {max_context}: the model has positions for 1 to {longest} tokens{more}")
    return chosen(module.Options, target, asked, max_context or min(longest, DEFAULT_CONTEXT))


def write(
    module: Target[Any],
    model: FoldedModel,
    folded: Path,
    folder: Path,
    options: Any,
    *,
    ask: bool = False,
    done: Callable[[str], None] = lambda part: None,
) -> dict[str, Any]:
    """Write the artifact and its manifest as a whole; return the manifest. `ask` its clients, too.
    `done` hears of each of `parts(model)` parts."""
    with own_folder.replacing(folder, manifest.earlier) as draft:
        made = module.write(model, folded, draft, options, done)
        done("clients")
        states = made.details["clients"]
        states = asked.ask(draft, folded, states) if ask else asked.unasked(states)
        made = replace(made, details={**made.details, "clients": states})
        app.write(made, model, folded, draft)
        return manifest.write(made, model, folded, draft)


def export(
    model_dir: Path,
    target: str = "onnx",
    asked: Mapping[str, str | None] = {},
    max_context: int | None = None,
    output: Path | None = None,
    base: str | None = None,
) -> Path:
    """The whole of it in one call: the artifact's folder. `asked`: options of the target by name (form, logits, ...)."""
    module = load(target)
    form = asked.get("form")
    folder = destination(model_dir, target if form in (None, *module.FORMS[:1]) else f"{target}-{form}", output)
    options = choose(module, target, config_of(model_dir, base), max_context, asked)
    with opened(model_dir, base, write=True) as (model, folded):
        refuse(module.plan(model, folded, options))
        write(module, model, folded, folder, options, ask=True)
    return folder


def refuse(plan: Sequence[LayerRow]) -> None:
    """Refusal if the target cannot hold a layer."""
    if refused := [row for row in plan if row.refused is not None]:
        raise Refusal("; ".join(f"{row.layers}: {row.refused}" for row in refused))


def parts(model: FoldedModel) -> int:
    """How many parts `write` tells of."""
    return decoder.parts(architecture.read(model.config)) + 1
