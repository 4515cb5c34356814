# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval: how good is the artifact itself, on a device, beside its PyTorch reference?

Answers are kept as they come (journal.py): a run that was killed goes on where it stopped, and the same
question is never asked twice of the same bytes on the same device.

Exit code 0: measured. 1: the device failed. 2: bad input, nothing was measured.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dlqat import __version__, atomic, refusal
from dlqat.devices import artifact as artifacts
from dlqat.devices.all import DEVICES, device
from dlqat.devices.artifact import Artifact
from dlqat.devices.device import Device, DeviceFailure, Session, Setting
from dlqat.devices.isolated import isolated
from dlqat.quiet import hush
from dlqat.refusal import Refusal
from dlqat.runtime_tests import report, versions
from dlqat.runtime_tests.fingerprint import fingerprint, result_path

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
FORMAT = 1
CACHE = ".dlqat-eval"


@dataclass(frozen=True, slots=True)
class Request:
    """One run of dlqat-eval."""

    artifact: Artifact
    device: Device
    reference: Path | None
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    limit: int | None = None
    shots: int | None = None
    text: Path | None = None
    tokens: int | None = None
    activations: str | None = None
    threads: int = 1
    folder: Path = Path()
    """Where results and journals go."""

    @property
    def command(self) -> str:
        """What to type to get these figures again."""
        words = ["dlqat-eval", str(self.artifact.folder), "--device", self.device.name]
        words += ["--reference", str(self.reference)] if self.reference else ["--no-reference"]
        words += [w for t in self.tasks for w in ("--tasks", t)]
        for name in ("data", "limit", "shots", "text", "tokens", "activations"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", str(value)]
        return shlex.join([*words, "--threads", str(self.threads)])


def evaluate(request: Request, console: Console) -> dict[str, Any]:
    """The content of eval-DEVICE.json. DeviceFailure if the device fails; answers given so far are kept."""
    from transformers import AutoTokenizer

    from dlqat.runtime_tests import evaluate as measure
    from dlqat.runtime_tests import tasks

    start = time.monotonic()
    setting = _setting(request)
    configs = tasks.configs(request.tasks, request.data) if request.tasks else None
    tokenizer: Any = AutoTokenizer.from_pretrained(request.reference or request.artifact.folder)
    ids = _token_ids(tokenizer, request.text, request.tokens)
    subjects = [_artifact(request, setting)] + ([_reference(request)] if request.reference else [])
    answers: list[Any] = []
    windows: list[Any] = []
    own: list[Any] = []
    try:
        for subject in subjects:
            with _progress(console, subject.name) as subject.tell:
                windows.append(measure.perplexity(subject, ids) if ids else None)
                found = measure.tasks(subject, tokenizer, configs, request.limit, request.shots) if configs else None
                answers.append(found[0] if found else None)
                own.append(found[1] if found else None)
        facts = {subject.name: dict(subject.facts()) for subject in subjects}
    finally:
        for subject in subjects:
            subject.close()
    ours, theirs = answers[0], answers[1] if len(answers) > 1 else None
    found_text = measure.compared_text(windows[0], windows[1] if len(windows) > 1 else None) if ids else None
    return report.plain(
        {
            "format": FORMAT,
            "artifact": str(request.artifact.folder),
            "program": {"file": request.artifact.program.name, "sha256": fingerprint(request.artifact)},
            "reference": str(request.reference) if request.reference else None,
            "device": request.device.name,
            "setting": str(setting),
            "command": request.command,
            "seconds": time.monotonic() - start,
            "tasks": measure.compared(ours, theirs) if configs else {},
            "text": {"file": str(request.text), **found_text} if found_text else None,
            "lm_eval": dict(zip([s.name for s in subjects], own, strict=True)) if configs else None,
            "facts": facts,
            "versions": {"dlqat": __version__, "python": platform.python_version()} | versions.installed(),
        }
    )


@app.command(no_args_is_help=True)
def command(
    artifact: Annotated[Path, typer.Argument(help="The folder that dlqat-export wrote: model_dir/onnx.")],
    device_name: Annotated[
        str | None, typer.Option("--device", help=f"Where it runs: {', '.join(DEVICES)}. Default: by the artifact.")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="A task of lm_eval: arc_easy; repeat, or use commas.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with TASK_SPLIT.jsonl: questions without a network.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions of each task.", min=1)] = None,
    shots: Annotated[int | None, typer.Option(help="Examples in the prompt. Default: the task's own.", min=0)] = None,
    text: Annotated[Path | None, typer.Option(help="A text file: perplexity in windows of 512 tokens.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Only the first N tokens of the text.", min=2)] = None,
    reference: Annotated[
        Path | None, typer.Option(help="folded/ of the model. Default: the one beside the artifact.")
    ] = None,
    no_reference: Annotated[bool, typer.Option("--no-reference", help="Measure the artifact alone.")] = False,
    activations: Annotated[
        str | None,
        typer.Option(help="float or int8: how the runtime multiplies. Default: what the device trusts most."),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Where results go. Default: into the artifact folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result file instead of the table.")] = False,
) -> None:
    """Measure accuracy of an artifact on a device: tasks of lm_eval, perplexity of a text."""
    found = artifacts.find(artifact)
    names = tuple(t.strip() for entry in tasks or () for t in entry.split(",") if t.strip())
    if not names and text is None:
        raise Refusal("nothing to measure; give --tasks arc_easy (with --data FOLDER), or --text FILE")
    if names and importlib.util.find_spec("lm_eval") is None:
        raise Refusal("tasks need lm_eval; pip install 'dlqat[eval]', or measure perplexity with --text FILE")
    chosen = device(device_name, found.format)
    if (reason := chosen.available()) is not None:
        raise Refusal(f"device {chosen.name} cannot run here: {reason}")
    if reference is not None and not (reference / "config.json").is_file():
        raise Refusal(f"{reference} is no model folder; name folded/ with --reference, or use --no-reference")
    if not os.access(folder := output or artifact, os.W_OK):
        raise Refusal(f"{folder} cannot be written to; say where results go with --output FOLDER")
    request = Request(
        found, isolated(chosen), None if no_reference else reference or _beside(artifact), names, data, limit, shots, text, tokens,
        activations, threads or os.cpu_count() or 1, folder,
    )  # fmt: skip
    console = Console(stderr=as_json)
    _quiet(offline=data is not None)
    try:
        result = evaluate(request, console)
    except DeviceFailure as failure:
        print(f"failed: {failure}; answers so far are kept, the same command goes on with them", file=sys.stderr)
        sys.exit(1)
    target = result_path(folder, chosen.name)
    atomic.text(target, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        console.print(_table(result))
        console.print(f"results: {escape(str(target))}")


def _setting(request: Request) -> Setting:
    found = request.device.settings(request.artifact.program, request.threads)
    fitting = [s for s in found if request.activations in (None, s.activations)]
    if not fitting:
        known = ", ".join(sorted({s.activations for s in found}))
        raise Refusal(f"device {request.device.name} has no --activations {request.activations} here; it has {known}")
    return fitting[0]


def _artifact(request: Request, setting: Setting) -> Any:
    from dlqat.runtime_tests.journal import Journal
    from dlqat.runtime_tests.subject import Subject

    identity = {
        "program": fingerprint(request.artifact),
        "device": request.device.name,
        "setting": [setting.activations, setting.optimize],
        "versions": versions.installed(),
    }

    def opened() -> Session:
        return request.device.open(request.artifact.program, setting)

    journal = Journal(request.folder / CACHE, identity)
    return Subject(request.device.name, opened, journal, request.artifact.context or 2048)


def _reference(request: Request) -> Any:
    import torch

    from dlqat.runtime_tests.journal import Journal
    from dlqat.runtime_tests.reference import Reference
    from dlqat.runtime_tests.subject import Subject
    from dlqat.runtime_tests.torch_session import TorchSession

    assert request.reference is not None
    files = {p.name: atomic.sha256(p) for p in sorted(request.reference.glob("*.safetensors"))}
    identity = {"reference": files, "config": atomic.sha256(request.reference / "config.json")}
    folder = request.reference

    def opened() -> Session:
        torch.set_num_threads(request.threads)
        return TorchSession(Reference(folder).network)

    journal = Journal(request.folder / CACHE, identity | {"versions": versions.installed()})
    return Subject("reference", opened, journal, request.artifact.context or 2048)


def _token_ids(tokenizer: Any, text: Path | None, most: int | None) -> list[int]:
    if text is None:
        return []
    if not text.is_file():
        raise Refusal(f"{text} is not a file; give a text file to --text")
    ids = list(tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"])[:most]
    if len(ids) < 2:
        raise Refusal(f"{text} has {len(ids)} tokens; perplexity needs two")
    return ids


def _beside(artifact: Path) -> Path:
    found = artifact.resolve().parent / "folded"
    if not found.is_dir():
        raise Refusal(
            f"{artifact} has no folded/ beside it; name the reference with --reference, or use --no-reference"
        )
    return found


def _quiet(*, offline: bool) -> None:
    """No bars and banners of libraries; no look at a hub where the questions are local."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    hush("lm_eval", "lm-eval", "datasets", "transformers")


@contextmanager
def _progress(console: Console, name: str) -> Generator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"dlqat-eval on {result['device']} ({result['setting']})", title_style="")
    for column in ("", "artifact", "reference", "difference"):
        table.add_column(column)
    if text := result["text"]:
        gap = text.get("difference_nats")
        shown = [_span(text["artifact"], 1), _span(text.get("reference"), 1)]
        shown.append("" if not gap else f"{gap['value']:+.1e} nats [{gap['low']:+.1e}, {gap['high']:+.1e}]")
        table.add_row(f"perplexity, {text['tokens']} tokens", *shown)
    for task, metrics in result["tasks"].items():
        for metric, row in metrics.items():
            shown = [_span(row["artifact"], 100), _span(row.get("reference"), 100), _span(row.get("difference"), 100)]
            table.add_row(f"{task} {metric}, {row['questions']} questions", *shown)
    return table


def _span(interval: dict[str, float] | None, factor: float) -> str:
    if interval is None:
        return ""
    value, low, high = (interval[k] for k in ("value", "low", "high"))
    return escape(f"{factor * value:.1f} [{_edge(low, factor)}, {_edge(high, factor)}]")


def _edge(value: float | None, factor: float) -> str:
    return "?" if value is None else f"{factor * value:.1f}"


main = refusal.command(app)

if __name__ == "__main__":
    main()
