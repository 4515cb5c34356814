# SPDX-License-Identifier: Apache-2.0
"""dlqat-devices: what this machine can check artifacts on, and what is missing for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from dlqat import artifact as artifacts
from dlqat import refusal
from dlqat.devices.all import ALL
from dlqat.devices.device import DeviceFailure
from dlqat.devices.phone import by_hand
from dlqat.devices.phone.android import Android
from dlqat.devices.releases import FETCHED, RELEASES
from dlqat.devices.web.transformers import TRANSFORMERS_JS
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal, say, say_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SETUP = Path(__file__).parent / "setup"


def scripts() -> dict[str, tuple[str, ...]]:
    """What --set-up knows: name -> a script of setup/ and its arguments."""
    own = {path.stem: (path.name,) for path in sorted(SETUP.glob("[!_]*.sh"))}
    npm = {device.set_up: device.script for device in TRANSFORMERS_JS}
    return own | npm | {device.release.set_up: device.release.script for device in (*FETCHED, *RELEASES)}


@app.command()
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    set_up: Annotated[
        str | None, typer.Option(help=f"Fetch what a device needs, without root: {', '.join(scripts())}.")
    ] = None,
    print_commands: Annotated[
        Path | None,
        typer.Option(
            help="Print commands that bring this artifact to a phone: adb; an iPhone behind a Mac; Qualcomm AI Hub."
        ),
    ] = None,
) -> None:
    """List every device: what it runs, and whether it can run here or what is missing.

    Exit code 0: listed, or set up. 2: bad input, or what was to be set up could not be fetched. 3: a bug in dlqat.
    """
    if set_up is not None:
        _run(set_up)
    if print_commands is not None:
        try:
            lines = _commands(print_commands)
        except DeviceFailure as failure:  # of reading the program, for the files beside it
            raise Refusal(f"{failure}; export again") from failure
        say("\n".join(lines))
        return
    rows = [(d.name, d.formats, d.available()) for d in ALL]
    if as_json:
        say_json([{"name": n, "formats": f, "available": r is None, "reason": r} for n, f, r in rows])
        return
    table = Table()
    for column in ("device", "runs", "here"):
        table.add_column(column, overflow="fold")
    for name, formats, reason in rows:
        table.add_row(name, ", ".join(formats), Text("available", "green") if reason is None else Text(reason))
    Terminal().print(table)


def _commands(folder: Path) -> list[str]:
    """Commands that bring an artifact to a phone, for a person to type."""
    found = artifacts.find(folder)
    if found.format == "coreml":
        return ["# an iPhone behind a Mac; not verified", *by_hand.iphone(found.program)]
    phones = [d for d in ALL if isinstance(d, Android) and found.format in d.formats]
    lines = ["# Android behind adb", *(line for phone in phones for line in phone.commands(found.program))]
    if found.format == "onnx":
        lines += ["# Qualcomm AI Hub, with an account; not verified", *by_hand.ai_hub(found.program)]
    return lines


def _run(name: str) -> None:
    known = scripts()
    if name not in known:
        raise Refusal(f"--set-up {name} is not known; known: {', '.join(known)}")
    script, *arguments = known[name]
    command = ["bash", str(SETUP / script), *arguments]
    done = subprocess.run(command, check=False, env={**os.environ, "PYTHON": sys.executable})
    if done.returncode:
        raise Refusal(f"set-up {name} failed (exit code {done.returncode}); {SETUP / script} says what it does")


main = refusal.command(app)

if __name__ == "__main__":
    main()
