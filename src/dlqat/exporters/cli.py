# SPDX-License-Identifier: Apache-2.0
"""dlqat-export: from a model_dir (or a folded/ folder) to the artifact of one target."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.status import Status
from rich.table import Table
from rich.text import Text

from dlqat import first_lines, refusal
from dlqat.formats import FORMATS
from dlqat.progress import Bars
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal, starting

if TYPE_CHECKING:
    from dlqat.exporters.storage import LayerRow

CHECK, PUBLISH = "dlqat.runtime_tests.cli", "dlqat.publish"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Terminal(stderr=True)


@app.command()
def export(
    model_dir: Annotated[Path, typer.Argument(help="A folder that dlqat-train wrote, or a folded/ folder.")],
    target: Annotated[str, typer.Option(help=f"What to write: {', '.join(FORMATS)}.")] = "onnx",
    form: Annotated[
        str | None,
        typer.Option(
            help="onnx: qdq (standard operators, the default), ort (ONNX Runtime's own) or web (browsers); "
            "gguf: exact (the default) or q2_0 (2 bits in 2 bits, for llama.cpp from July 2026 on); "
            "mlx: float32 (the default), float16 or bfloat16."
        ),
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
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Put it on the Hugging Face hub when its check has passed.")
    ] = None,
) -> None:
    """Write the integers of MODEL_DIR as an artifact that a runtime loads, and run dlqat-check --quick on it.

    Exit code 0: written, and no check failed. 1: written, and a check failed. 2: bad input. 3: a bug in dlqat.
    """
    if push and (dry_run or not verify):
        raise Refusal("--push needs the check; leave out --dry-run and --no-verify")
    starting()
    # With torch, and --help imports this file.
    from dlqat import architecture
    from dlqat.exporters import footprint
    from dlqat.exporters.pipeline import choose, config_of, destination, load, opened, parts, refuse, write

    module = load(target)
    name = target if form in (None, *module.FORMS[:1]) else f"{target}-{form}"
    folder = destination(model_dir, name, output)
    asked_for = {"form": form, "logits": logits, "deployment_target": deployment_target}
    options = choose(module, target, config_of(model_dir, base), max_context, asked_for)
    with opened(model_dir, base, write=not dry_run, busy=_busy) as (model, folded):
        plan = module.plan(model, folded, options)
        if dry_run:
            Terminal().print(table(plan, f"{folder} ({target}, {options.form}, context {options.context})"))
            Terminal().print(f"memory: {footprint.of(architecture.read(model.config), target) / 1e9:.1f} GB at most")
        refuse(plan)
        if dry_run:
            return
        with _counted(parts(model)) as done:
            summary = write(module, model, folded, folder, options, ask=verify, done=done)
    _tell(summary, folder)
    if verify:
        check(folder, folded)
    if push:
        _child(PUBLISH, str(folder), push)


def _busy(what: str) -> Status:
    return console.status(Text(what))


def _tell(summary: dict[str, Any], folder: Path) -> None:
    """What was written, what its clients said, and how to load it."""
    target, form = summary["target"], summary["form"]
    console.print(
        f"{folder}: {summary['bytes']['total'] / 1e6:.1f} MB, {summary['bits_per_weight']} bits per weight, "
        f"{target} {form}",
        soft_wrap=True,
    )
    for client, state in summary["clients"].items():
        if state != "ready":
            console.print(f"{client}: {state}", soft_wrap=True)
    lines = indent(first_lines.of(target, form, str(folder)), "    ")
    console.print(Text(f"to load it:\n{lines}"), soft_wrap=True)


@contextmanager
def _counted(total: int) -> Generator[Callable[[str], None]]:
    """A bar of so many parts, and who is told of each that is done."""
    with Bars(console, transient=True) as progress:
        task = progress.add_task("export", total=total)
        yield lambda part: progress.update(task, advance=1, note=part)


def check(folder: Path, folded: Path) -> None:
    """Run dlqat-check --quick as its own process: exporters know nothing of the proof. Its exit code becomes ours."""
    if find_spec(CHECK) is None:
        console.print("not verified: dlqat-check is not installed")
        return
    _child(CHECK, str(folder), "--reference", str(folded), "--quick")
    console.print(f"the whole proof: {shlex.join(['dlqat-check', str(folder)])}", soft_wrap=True)


def _child(module: str, *words: str) -> None:
    """One of our commands; its exit code, if it failed, becomes ours."""
    if code := subprocess.run([sys.executable, "-m", module, *words], check=False).returncode:
        raise typer.Exit(code)


def table(plan: list[LayerRow], title: str) -> Table:
    """The plan for people."""
    view = Table("layers", "count", "grid", "becomes", "refused", title=Text(title), title_justify="left")
    for row in plan:
        view.add_row(*map(Text, (row.layers, str(row.count), row.grid, row.becomes, row.refused or "")))
    return view


main = refusal.command(app)

if __name__ == "__main__":
    main()
