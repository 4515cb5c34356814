# SPDX-License-Identifier: Apache-2.0
"""dlqat-check: prove that an artifact holds the integers of folded/ and computes with them.

Exit code 0: nothing failed (what could not be judged is listed as "not verified"). 1: a check failed.
2: bad input, nothing was checked. 3: a bug.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dlqat import artifact as artifacts
from dlqat import refusal
from dlqat.devices.all import DEVICES
from dlqat.refusal import Refusal
from dlqat.runtime_tests.check.run import QUICK, RUNGS, CheckRequest, prove, report_folder
from dlqat.runtime_tests.report import record
from dlqat.runtime_tests.report.record import Check, Report
from dlqat.terminal import Terminal, say_json, starting

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
COLOURS = {"passed": "green", "failed": "red", "not verified": "yellow"}


@app.command(no_args_is_help=True)
def check(
    artifact: Annotated[
        Path,
        typer.Argument(
            help="The folder that dlqat-export wrote: model_dir/onnx. Or a .gguf file that something else made of the model."
        ),
    ],
    reference: Annotated[
        Path | None, typer.Option(help="folded/ of the model. Default: the one beside the artifact.")
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            "--device",
            help=f"Where it runs: {', '.join(DEVICES)}. Default: by the artifact. dlqat-devices tells which can run here.",
        ),
    ] = None,
    level: Annotated[list[str] | None, typer.Option(help="Only this rung, L0 to L5; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="L0, and short L2 and L3: seconds.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.", min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Where the report goes. Default: into the artifact folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")] = False,
) -> None:
    """Prove that an artifact holds the integers of folded/ and computes with them, on a device.

    L0  files as written; every code, scale and zero-point equal to folded/
    L1  every linear alone, against float64
    L2  logits: prefill and decode, against folded/ in PyTorch
    L3  greedy text, and where it stops
    L4  accuracy, as dlqat-eval has measured it
    L5  the artifact damaged on purpose: the checks must notice

    Exit code 0: nothing failed ("not verified" is listed, and never counts as passed).
    1: a check failed. 2: bad input, nothing was checked. 3: a bug in dlqat.

    dlqat-check model_dir/onnx
    dlqat-check model_dir/onnx --device browser-wasm --output reports/browser

    A .gguf file of another converter: how many of the trained values it still has, layer by layer.

    dlqat-check other.gguf --reference model_dir/folded
    """
    refusal.unwind_when_terminated()
    starting()
    if artifact.is_file():
        if device_name or level or quick or output:
            raise Refusal(
                f"{artifact} is a file, and is compared only; leave out --device, --level, --quick and --output"
            )
        sys.exit(_compare(artifact, reference or artifacts.folded_beside(artifact), as_json=as_json))
    found = artifacts.find(artifact)
    request = CheckRequest(
        artifact=found,
        reference=reference or artifacts.folded_beside(artifact),
        device=device_name,
        rungs=_rungs(level, quick=quick),
        quick=quick,
        threads=threads or os.cpu_count() or 1,
        output=output,
    )
    console = Terminal(stderr=as_json)
    with report_folder(request) as target:
        with _progress(console) as bar:
            task = bar.add_task("", total=None)
            result = prove(
                request,
                tell=lambda what: bar.update(task, description=what[-90:]),
                done=lambda check: bar.console.print(_line(check)),
            )
        if as_json:
            say_json(record.as_dict(result))
        else:
            console.print(_table(result))
        paths = record.write(result, target)
    if not as_json:
        console.print(f"report: {paths[1]}, {paths[2].name} and {paths[0].name}")
    sys.exit(1 if result.verdict == "failed" else 0)


def _compare(file: Path, reference: Path, *, as_json: bool) -> int:
    """The exit code: 0 where every value is the trained one."""
    from dlqat.runtime_tests.check import other_file

    console = Terminal(stderr=as_json)
    with console.status(Text(f"comparing {file.name}")):
        rows = list(other_file.compare(file, reference))
    if as_json:
        say_json([asdict(row) for row in rows])
    else:
        kept = all(row.kept == row.total for row in rows)
        title = "holds the trained values" if kept else "does not hold the trained values"
        table = Table(title=Text(f"{file.name} {title}"), title_style="")
        for column in ("parameter", "type", "values kept", "codes moved", "distance"):
            table.add_column(column, overflow="fold", justify="left" if column in ("parameter", "type") else "right")
        for row in other_file.together(rows):
            shares = (f"{100 * n / row.total:.1f} %" for n in (row.kept, row.moved))
            table.add_row(
                Text(row.name.removeprefix("model.").removesuffix(".weight")),
                row.kind,
                *shares,
                f"{100 * row.distance:.2f} %",
            )
        console.print(table)
        console.print(
            "codes moved: values that another code of the trained grid would be nearer to\ndistance: root mean square, relative"
        )
    return 0 if all(row.kept == row.total for row in rows) else 1


def _rungs(level: list[str] | None, *, quick: bool) -> Sequence[str]:
    if level and quick:
        raise Refusal("--quick chooses its own rungs; leave out --level")
    if unknown := sorted(set(level or ()) - set(RUNGS)):
        raise Refusal(f"--level {unknown[0]} is not known; known: {', '.join(RUNGS)}")
    return QUICK if quick else RUNGS if not level else [r for r in RUNGS if r in level]


def _progress(console: Terminal) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _line(check: Check) -> Text:
    return Text.assemble((f"{check.status:>12}", COLOURS[check.status]), f"  {check.rung} {check.name}")


def _table(result: Report) -> Table:
    verdict = (result.verdict, COLOURS[result.verdict])
    table = Table(title=Text.assemble("dlqat-check: ", verdict, f" in {result.seconds:.0f} s"), title_style="")
    for column in ("rung", "check", "status", "result"):
        table.add_column(column, overflow="fold")
    for one in result.checks:
        table.add_row(one.rung, Text(one.name), Text(one.status, COLOURS[one.status]), Text(one.summary))
    return table


main = refusal.command(app)

if __name__ == "__main__":
    main()
