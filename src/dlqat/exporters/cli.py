# SPDX-License-Identifier: Apache-2.0
"""dlqat-export: from a model_dir (or a folded/ folder) to the artifact of one target."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dlqat import architecture, checkpoint, folder_lock, own_folder, refusal
from dlqat.adapter import ADAPTERS
from dlqat.architecture import Config
from dlqat.checkpoint import FoldedModel
from dlqat.exporters import asked, decoder, manifest
from dlqat.exporters.target import Options, Row, Target
from dlqat.quiet import quiet
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal

TARGETS = {
    "onnx": "dlqat.exporters.onnx_target",
    "executorch": "dlqat.exporters.executorch_target",
    "coreml": "dlqat.exporters.coreml_target",
}
"""Target -> module (target.Target), imported when asked for: every target needs another extra."""
DEFAULT_CONTEXT = 4096  # a runtime reserves the cache for it: 188 MB on SmolLM2-135M, 16 times that for 128k
CHECK = "dlqat.runtime_tests.cli"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Terminal(stderr=True)


@app.command()
def export(
    model_dir: Annotated[Path, typer.Argument(help="A folder that dlqat-train wrote, or a folded/ folder.")],
    target: Annotated[str, typer.Option(help=f"What to write: {', '.join(TARGETS)}.")] = "onnx",
    form: Annotated[
        str | None,
        typer.Option(help="onnx: qdq (standard operators, the default), ort (ONNX Runtime's own) or web (browsers)."),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Longest text in tokens, prompt and answer. Default: the model's, 4096 at most.")
    ] = None,
    logits: Annotated[
        str | None, typer.Option(help="executorch: logits of the last position (the default) or of all.")
    ] = None,
    deployment_target: Annotated[
        str | None, typer.Option(help="coreml: iOS18 (the default) or iOS26, the lowest system that must run it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: MODEL_DIR/TARGET, or /TARGET-FORM for ort and web.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model, if it has moved since training (only for folding).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")] = False,
    verify: Annotated[bool, typer.Option(help="Run dlqat-check --quick on the result.")] = True,
) -> None:
    """Write the integers of MODEL_DIR as an artifact that a runtime loads, and run dlqat-check --quick on it.

    Exit code 0: written, and no check failed. 1: written, and a check failed. 2: bad input. 3: a bug in dlqat.
    """
    module = load(target)
    name = target if form in (None, *module.FORMS[:1]) else f"{target}-{form}"
    folder = destination(model_dir, name, output)
    options = choose(module, target, form, max_context, config_of(model_dir, base), logits, deployment_target)
    with opened(model_dir, base, write=not dry_run) as (model, folded):
        plan = module.plan(model, folded, options)
        if dry_run:
            Terminal().print(table(plan, f"{folder} ({target}, {options.form}, context {options.context})"))
        if refused := [row for row in plan if row.refused is not None]:
            raise Refusal("; ".join(f"{row.layers}: {row.refused}" for row in refused))
        if dry_run:
            return
        summary = write(module, model, folded, folder, options, ask=verify)
    console.print(
        f"{folder}: {summary['bytes']['total'] / 1e6:.1f} MB, {summary['bits_per_weight']} bits per weight, "
        f"{target} {options.form}",
        soft_wrap=True,
    )
    for client, state in summary["clients"].items():
        if state != "ready":
            console.print(f"{client}: {state}", soft_wrap=True)
    if verify:
        check(folder, folded)


def load(name: str) -> Target:
    """The module of a target. Refusal if there is none of that name, or its packages are not installed."""
    if name not in TARGETS:
        raise Refusal(f"target {name!r} is not known; known: {', '.join(TARGETS)}")
    try:
        with quiet():
            return cast(Target, importlib.import_module(TARGETS[name]))
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


def fold_if_needed(model_dir: Path, base: str | None = None) -> Path:
    """The folded/ folder of `model_dir`, written first if it is not of these adapters; `model_dir` itself if it is one."""
    if is_folded(model_dir):
        return model_dir
    if (model_dir / ADAPTERS).is_file():
        from dlqat.exporters import fold

        if fold.stale(model_dir):
            with console.status(Text(f"folding {model_dir}")):
                fold.fold(model_dir, base)
    folded = model_dir / "folded"
    if not folded.is_dir():
        if (model_dir / "training").is_dir():
            raise Refusal(f"{model_dir}: training is not finished; the same dlqat-train command continues it")
        raise Refusal(f"{model_dir} holds neither adapters nor folded/; give a folder that dlqat-train wrote")
    return folded


def config_of(model_dir: Path, base: str | None) -> Config:
    """The model's config, the base's where the fold is still to come: options are judged before that work."""
    if not is_folded(model_dir) and (model_dir / ADAPTERS).is_file():
        from dlqat.exporters import fold

        if fold.stale(model_dir):
            return fold.config(model_dir, base)
    return checkpoint.read(fold_if_needed(model_dir)).config


@contextmanager
def opened(model_dir: Path, base: str | None, *, write: bool) -> Generator[tuple[FoldedModel, Path]]:
    """The folded model, and the folder with its tokenizer; nobody else folds while the block runs.
    Not `write`: what is not folded yet is folded in memory."""
    if not write and (model_dir / ADAPTERS).is_file():
        from dlqat.exporters import fold

        if fold.stale(model_dir):
            yield fold.opened(model_dir, base), model_dir
            return
    folded = fold_if_needed(model_dir, base)
    with folder_lock.reading(folded):
        yield checkpoint.read(folded), folded


def choose(
    module: Target,
    target: str,
    form: str | None,
    max_context: int | None,
    config: Config,
    logits: str | None = None,
    deployment_target: str | None = None,
) -> Options:
    """The options with their defaults filled in. Refusal for a form or context that the target or model lacks."""
    chosen = _one_of(module.FORMS, "--form", form, target)
    positions = _one_of(module.LOGITS, "--logits", logits, target)
    system = _one_of(module.DEPLOYMENT_TARGETS, "--deployment-target", deployment_target, target)
    longest = architecture.read(config).max_positions
    if max_context is not None and not 1 <= max_context <= longest:
        raise Refusal(f"--max-context {max_context}: the model has positions for 1 to {longest} tokens")
    return Options(chosen, max_context or min(longest, DEFAULT_CONTEXT), positions, system)


def _one_of(known: tuple[str, ...], option: str, asked: str | None, target: str) -> str:
    """`asked`, or the first of the choices that the target has; "" where it has none."""
    if asked and asked not in known:
        names = f"known: {', '.join(known)}" if known else "it has no such choice"
        raise Refusal(f"{option} {asked} is not known to target {target}; {names}")
    return asked or next(iter(known), "")


def write(
    module: Target, model: FoldedModel, folded: Path, folder: Path, options: Options, *, ask: bool = False
) -> dict[str, Any]:
    """Write the artifact and its manifest as a whole, with a progress bar; return the manifest. `ask` its clients, too."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        own_folder.replacing(folder, manifest.earlier) as draft,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        task = progress.add_task("export", total=decoder.parts(architecture.read(model.config)))

        def done(part: str) -> None:
            progress.update(task, advance=1, description=part)

        made = module.write(model, folded, draft, options, done)
        progress.update(task, description="clients")
        states = made.details["clients"]
        states = asked.ask(draft, folded, states) if ask else asked.unasked(states)
        made = replace(made, details={**made.details, "clients": states})
        return manifest.write(made, model, folded, draft)


def check(folder: Path, folded: Path) -> None:
    """Run dlqat-check --quick as its own process: exporters know nothing of the proof. Its exit code becomes ours."""
    if find_spec(CHECK) is None:
        console.print("not verified: dlqat-check is not installed")
        return
    command = [sys.executable, "-m", CHECK, str(folder), "--reference", str(folded), "--quick"]
    if code := subprocess.run(command, check=False).returncode:
        raise typer.Exit(code)
    console.print(f"the whole proof: {shlex.join(['dlqat-check', str(folder)])}", soft_wrap=True)


def table(plan: list[Row], title: str) -> Table:
    """The plan for people."""
    view = Table("layers", "count", "grid", "becomes", "refused", title=Text(title), title_justify="left")
    for row in plan:
        view.add_row(*map(Text, (row.layers, str(row.count), row.grid, row.becomes, row.refused or "")))
    return view


main = refusal.command(app)

if __name__ == "__main__":
    main()
