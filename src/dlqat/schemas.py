# SPDX-License-Identifier: Apache-2.0
"""dlqat schema NAME: the JSON Schema of a file that programs read, of this very version."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from dlqat import refusal
from dlqat.refusal import Refusal
from dlqat.terminal import say_json

SCHEMAS = {"report": "dlqat.runtime_tests.report.record", "manifest": "dlqat.exporters.manifest"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(no_args_is_help=True)
def schema(name: Annotated[str, typer.Argument(help=f"{' or '.join(SCHEMAS)}: which file, without .json.")]) -> None:
    """Print the JSON Schema of report.json (dlqat-check) or manifest.json (dlqat-export).

    Exit code 0: printed. 2: bad input. 3: a bug in dlqat.
    """
    if name not in SCHEMAS:
        raise Refusal(f"{name} has no schema; known: {', '.join(SCHEMAS)}")
    say_json(import_module(SCHEMAS[name]).schema())


main = refusal.command(app)

if __name__ == "__main__":
    main()
