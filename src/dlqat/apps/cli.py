# SPDX-License-Identifier: Apache-2.0
"""dlqat-app: an artifact in an app. `new` writes an app's source with the model in it, `serve` shows the web one."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from dlqat import own_folder, refusal
from dlqat.apps.platforms import PLATFORMS
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal, say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
EXPORT = "dlqat.exporters.cli"


@app.callback()
def group() -> None:
    """Put an artifact into an app: a web page, React Native, Android or iOS.

    Exit code 0: done. 1: a check of the export failed. 2: bad input, nothing was written. 3: a bug in dlqat.
    """


@app.command()
def new(
    model: Annotated[Path, typer.Argument(help="A model_dir, or the folder that dlqat-export wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The app's folder.")],
    platform: Annotated[str, typer.Option(help=f"Of {', '.join(PLATFORMS)}.")] = "web",
) -> None:
    """Write the source of an app with the model in it. A model_dir is exported first, if it was not.

    dlqat-app new --platform web model_dir -o my-app
    """
    from dlqat.apps import new as writer

    if platform not in PLATFORMS:
        raise Refusal(f"platform {platform!r} is not known; known: {', '.join(PLATFORMS)}")
    chosen = PLATFORMS[platform]
    own_folder.refuse_foreign(output)
    artifact = writer.artifact_of(model, chosen)
    if artifact is None:
        words = ["--target", chosen.target, *(["--form", chosen.form] if chosen.form else [])]
        if code := subprocess.run([sys.executable, "-m", EXPORT, str(model), *words], check=False).returncode:
            raise typer.Exit(code)
        artifact = writer.artifact_of(model, chosen)
        assert artifact is not None
    made = writer.new(platform, artifact, output)
    console = Terminal(stderr=True)
    console.print(f"{output}: {made.name}, {made.target} {made.form}, integers {made.integers}", soft_wrap=True)
    if made.integers != "passed":
        console.print(
            f"dlqat-check {shlex.quote(str(artifact))} verifies them; then make the app again", soft_wrap=True
        )
    say(f"cd {shlex.quote(str(output))} && {chosen.then}")


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="A built web app (dist), or an artifact: model_dir/onnx-web.")],
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8000,
) -> None:
    """Show a web app on this machine until it is stopped. An artifact is shown in the app of this package (built by npm once).

    A phone on a cable opens the same address after: adb reverse tcp:8000 tcp:8000
    """
    from dlqat.apps.serve import site_of

    refusal.unwind_when_terminated()
    server = site_of(folder, port)
    say(server.address)
    sys.stdout.flush()
    with server:
        server.serve_forever()


main = refusal.command(app)

if __name__ == "__main__":
    main()
