# SPDX-License-Identifier: Apache-2.0
"""dlqat push: a checked artifact on the Hugging Face hub, with a model card made from its reports.

Only what manifest.json names goes up, manifest.json, the card and its badge: no reports, which name folders of this machine, and no
answers. Refused: files that are not the ones that were written, and an artifact that was not checked or failed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from dlqat import artifact, atomic, badge, json_file, model_card, model_dir, own_folder, refusal
from dlqat.artifact import Artifact
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CARD = "README.md"


@app.command(no_args_is_help=True)
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A folder that dlqat-export wrote and dlqat-check checked.")
    ],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The model's name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only for you, if the repository is new.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the card, and send nothing.")] = False,
) -> None:
    """Put a checked artifact on the Hugging Face hub, with a model card made from its reports.

    Log in first: hf auth login. Exit code 0: it is there. 2: refused, nothing was sent.

    dlqat push model_dir/gguf me/my-model-GGUF
    """
    refusal.unwind_when_terminated()
    if model_card.HUB.fullmatch(repository) is None:
        raise Refusal(f"{repository} is not a model of the hub; name it as org/name")
    found = artifact.find(folder)
    text = card(found, repository)
    own = {CARD: text, badge.NAME: badge.svg(json_file.read(folder / "report.json"))}
    for name, content in own.items():
        if (folder / name).exists() and name not in own_folder.written(folder):
            raise Refusal(f"{folder / name} is not dlqat's; move it, for a file of the model card goes there")
        atomic.text(folder / name, content)
        if own_folder.marked(folder):
            own_folder.note(folder, folder / name)
    console = Terminal()
    files = [*own, artifact.MANIFEST, *sorted(found.manifest.files)]
    if dry_run:
        console.print(f"{folder / CARD} is written; {len(files)} files would go to {repository}", soft_wrap=True)
        return
    console.print(f"sending {len(files)} files to {repository}", soft_wrap=True)
    console.print(_send(folder, repository, files, private=private), soft_wrap=True)


def card(found: Artifact, repository: str) -> str:
    """The model card. Refusal if the files are not the ones that were written, or no check of them passed."""
    folder = found.folder
    if damaged := next(artifact.damage(found), None):
        raise Refusal(f"{folder}: {damaged}; export again")
    report: dict[str, Any] = json_file.read_if_there(folder / "report.json")
    if not report:
        raise Refusal(f"{folder} was not checked: it has no report.json; run dlqat-check {folder}")
    digest = atomic.sha256(folder / artifact.MANIFEST)
    of = [c["figures"].get("manifest_sha256") for c in report["checks"] if c["rung"] == "L0"]
    if digest not in of:
        raise Refusal(f"{folder}/report.json is about other files than these; run dlqat-check {folder}")
    if report["verdict"] != "passed":
        raise Refusal(f"{folder}: its check says {report['verdict']}; see {folder}/report.md")
    evals = [json_file.read_if_there(p) for p in sorted(folder.glob("eval-*.json"))]
    manifest = json_file.read(folder / artifact.MANIFEST)
    return model_card.card(repository, manifest, report, evals, licence(folder.parent))


class _Recorded(msgspec.Struct, frozen=True):
    """Where dlqat-train found the base."""

    source: str


def licence(trained: Path) -> str:
    """The `license:` in the model card of the base, or "" if it is not on this machine."""
    try:
        base = Path(json_file.read_as(trained / model_dir.RECORD, _Recorded).source)
        text = (base / CARD).read_text(encoding="utf-8")
    except (Refusal, OSError, UnicodeDecodeError):
        return ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    named = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
    return named[1] if named else ""


def _send(folder: Path, repository: str, files: list[str], *, private: bool) -> str:
    """The address at which it is. Refusal with the hub's own words if it did not take it."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="dlqat")
    operations = [CommitOperationAdd(name, folder / name) for name in files]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message="dlqat push")
    except (HfHubHTTPError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise Refusal(f"{repository}: the hub did not take it ({said}); are you logged in (hf auth login)?") from error
    return str(done.repo_url)


main = refusal.command(app)

if __name__ == "__main__":
    main()
