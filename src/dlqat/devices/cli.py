# SPDX-License-Identifier: Apache-2.0
"""dlqat-devices: what this machine can check artifacts on, and what is missing for the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlqat import refusal
from dlqat.devices import artifact as artifacts
from dlqat.devices.all import ALL
from dlqat.devices.android import Android
from dlqat.refusal import Refusal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SETUP = Path(__file__).parent / "setup"


def scripts() -> dict[str, Path]:
    """What --set-up knows, by name."""
    return {path.stem: path for path in sorted(SETUP.glob("[!_]*.sh"))}


@app.command()
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    set_up: Annotated[
        str | None, typer.Option(help=f"Fetch what a device needs, without root: {', '.join(scripts())}.")
    ] = None,
    print_commands: Annotated[
        Path | None, typer.Option(help="Print the adb commands that put this artifact on a phone and start it.")
    ] = None,
) -> None:
    """List every device: what it runs, and whether it can run here or what is missing."""
    if set_up is not None:
        _run(set_up)
    if print_commands is not None:
        print("\n".join(_commands(print_commands)))
        return
    rows = [(d.name, d.formats, d.available()) for d in ALL]
    if as_json:
        print(
            json.dumps([{"name": n, "formats": f, "available": r is None, "reason": r} for n, f, r in rows], indent=1)
        )
        return
    table = Table()
    for column in ("device", "runs", "here"):
        table.add_column(column, overflow="fold")
    for name, formats, reason in rows:
        table.add_row(name, ", ".join(formats), "[green]available[/green]" if reason is None else escape(reason))
    Console().print(table)


def _commands(folder: Path) -> list[str]:
    """The adb commands for an artifact. Refusal if no runtime on a phone behind adb runs it."""
    found = artifacts.find(folder)
    phones = [d for d in ALL if isinstance(d, Android) and found.format in d.formats]
    if not phones:
        raise Refusal(f"{folder} is a {found.format} artifact, and adb reaches Android only")
    return phones[0].commands(found.program)


def _run(name: str) -> None:
    known = scripts()
    if name not in known:
        raise Refusal(f"--set-up {name} is not known; known: {', '.join(known)}")
    done = subprocess.run(["bash", str(known[name])], check=False, env={**os.environ, "PYTHON": sys.executable})
    if done.returncode:
        raise Refusal(f"set-up {name} failed (exit code {done.returncode}); {known[name]} says what it does")


main = refusal.command(app)

if __name__ == "__main__":
    main()
