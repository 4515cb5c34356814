# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval: how good is the artifact itself, on a device, beside its PyTorch reference?

Answers are kept as they come (journal.py): a run that was killed goes on where it stopped, and the same
question is never asked twice of the same bytes on the same device.

Exit code 0: measured. 1: the device failed. 2: bad input, nothing was measured. 3: a bug in dlqat.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlqat import artifact as artifacts
from dlqat import atomic, folder_lock, own_folder, refusal
from dlqat.devices.all import DEVICES, usable
from dlqat.devices.device import DeviceFailure
from dlqat.devices.process.isolated import isolated
from dlqat.quiet import hush
from dlqat.refusal import Refusal
from dlqat.runtime_tests import tolerances
from dlqat.runtime_tests.eval import intervals, progress
from dlqat.runtime_tests.eval.fingerprint import answers_path, result_path
from dlqat.runtime_tests.eval.request import EvalRequest
from dlqat.runtime_tests.report.eval_table import table
from dlqat.terminal import Terminal, complain, say_json, starting

if TYPE_CHECKING:
    from dlqat.source import Source

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(no_args_is_help=True)
def command(
    artifact: Annotated[Path, typer.Argument(help="The folder that dlqat-export wrote: model_dir/onnx.")],
    device_name: Annotated[
        str | None, typer.Option("--device", help=f"Where it runs: {', '.join(DEVICES)}. Default: by the artifact.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="A task of lm_eval: arc_easy, or my_task.yaml; repeat, or use commas.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with TASK_SPLIT.jsonl (arc_easy_test.jsonl): questions without a network."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions of each task.", min=1)] = None,
    shots: Annotated[int | None, typer.Option(help="Examples in the prompt. Default: the task's own.", min=0)] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text file: perplexity in windows of 512 tokens; .jsonl with messages: of each answer."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Only the first N tokens of the text.", min=2)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Your own test set: .jsonl with messages or prompt, and the answer that is wanted."),
    ] = None,
    longest: Annotated[int | None, typer.Option(help="Tokens of an answer to --prompts. Default: 256.", min=1)] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="What an app's evaluate screen answered to --prompts: scored, and no device is run."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="folded/ of the model. Default: the one beside the artifact.")
    ] = None,
    no_reference: Annotated[bool, typer.Option("--no-reference", help="Measure the artifact alone.")] = False,
    base: Annotated[
        str | None, typer.Option(help="The float model, if it has moved since training (a third column).")
    ] = None,
    floating: Annotated[
        bool, typer.Option("--float/--no-float", help="Measure the float model, if it is here.")
    ] = True,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--apply-chat-template/--no-apply-chat-template",
            help="Ask through the model's chat template, as apps do. Default: messages yes, lm_eval's tasks no.",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="float or int8: how the runtime multiplies. Default: what the device trusts most."),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.", min=0)] = 0,
    output: Annotated[Path | None, typer.Option(help="Where results go. Default: into the artifact folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result file instead of the table.")] = False,
) -> None:
    """Measure accuracy of an artifact on a device: your own prompts, tasks of lm_eval, perplexity of a text.

    The same questions go to the reference, folded/ in PyTorch, and to the float model that was trained from, where it is on
    this machine; differences are paired, intervals are 95 %.
    Every answer is kept: after a kill the same command goes on. dlqat-check takes the result up as rung L4.

    Exit code 0: measured. 1: the device failed. 2: bad input, nothing was measured. 3: a bug in dlqat.

    dlqat-eval model_dir/onnx --prompts test.jsonl
    dlqat-eval model_dir/onnx --text wiki.txt --tokens 8192
    dlqat-eval model_dir/onnx --tasks arc_easy,piqa --limit 200 --data FOLDER
    """
    refusal.unwind_when_terminated()
    starting()
    found = artifacts.find(artifact)
    names = tuple(t.strip() for entry in tasks or () for t in entry.split(",") if t.strip())
    if not names and text is None and prompts is None:
        raise Refusal(
            "nothing to measure; give --prompts FILE.jsonl (your own test set), --tasks arc_easy (with --data FOLDER), or --text FILE"
        )
    if names and importlib.util.find_spec("lm_eval") is None:
        raise Refusal("tasks need lm_eval; pip install 'dlqat[eval]', or measure perplexity with --text FILE")
    if answers is not None:
        _score(found, prompts, answers, reference, output, alone=no_reference)
        return
    chosen = usable(device_name, found)
    if not atomic.writable(folder := output or artifact):
        raise Refusal(f"{folder} cannot be written to; say where results go with --output FOLDER")
    beside = None
    if not no_reference:
        beside = reference or artifacts.folded_beside(artifact, ", or use --no-reference")
    _quiet(offline=data is not None)
    request = EvalRequest(
        found, isolated(chosen), beside, names, data, limit, shots, text, tokens,
        activations, threads or os.cpu_count() or 1, chat, _float(beside, base) if floating else None,
        prompts, longest, output,
    )  # fmt: skip
    needed = intervals.enough(tolerances.ACCURACY_POINTS)
    count = _fewest(names, data, limit)
    if beside and count is not None and count < needed:
        points = 100 * tolerances.ACCURACY_POINTS
        Terminal(stderr=True).print(
            f"{count} questions cannot pass rung L4 of dlqat-check: to tell {points:g} point takes {needed} even if every answer is the "
            "reference's",
            soft_wrap=True,
        )
    from dlqat.runtime_tests.eval import run as eval_run

    with folder_lock.writing(folder), folder_lock.reading(beside) if beside else nullcontext():
        try:
            result = eval_run.run(request, partial(progress.shown, Terminal(stderr=True)))
        except DeviceFailure as failure:
            complain(f"failed: {failure}; answers so far are kept, the same command goes on with them")
            sys.exit(1)
        told = _keep(folder, chosen.name, result)
    if as_json:
        say_json(result)
    else:
        console = Terminal()
        console.print(table(result))
        console.print(told)


def _keep(folder: Path, device: str, result: dict[str, Any]) -> str:
    """Write what was measured, and what was written to prompts in a file of its own. A line that says where."""
    said = result.pop("prompts")
    files = {result_path(folder, device): json.dumps(result, indent=1, allow_nan=False) + "\n"}
    if said:
        files[answers_path(folder, device)] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in said)
    for path, content in files.items():
        atomic.text(path, content)
        if own_folder.marked(folder):
            own_folder.note(folder, path)
    return f"results: {' and '.join(map(str, files))}"


def _score(
    found: artifacts.Artifact,
    prompts: Path | None,
    answers: Path,
    reference: Path | None,
    output: Path | None,
    *,
    alone: bool,
) -> None:
    """--answers: the figures of an app's file, beside the artifact."""
    if prompts is None:
        raise Refusal("--answers needs the file of prompts that the app had: --prompts FILE.jsonl")
    from dlqat.runtime_tests.eval import answers as app_answers

    if not atomic.writable(folder := output or found.folder):
        raise Refusal(f"{folder} cannot be written to; say where results go with --output FOLDER")
    beside = None if alone else reference or artifacts.folded_beside(found.folder, ", or use --no-reference")
    hush("transformers")
    result = app_answers.score(found, beside, prompts, answers)
    with folder_lock.writing(folder):
        told = _keep(folder, result["device"], result)
    Terminal().print(table(result))
    Terminal().print(told)


def _fewest(names: Sequence[str], data: Path | None, limit: int | None) -> int | None:
    """Questions of the shortest task, as far as it is known before lm_eval reads them."""
    counts = [limit] if names and limit is not None else []
    for name in names:
        if data is None:
            break
        files = [path for split in ("test", "validation") if (path := data / f"{name}_{split}.jsonl").is_file()]
        counts += [len([line for line in path.read_bytes().splitlines() if line.strip()]) for path in files[:1]]
    return min(counts, default=None)


def _float(beside: Path | None, named: str | None) -> Source | None:
    """The float model, or a line on why it is not measured."""
    if beside is None:
        if named is not None:
            raise Refusal("--base is measured beside the reference; leave --no-reference out")
        return None
    from dlqat import source  # with transformers

    found = source.at_hand(beside.resolve().parent, named)
    if isinstance(found, str):
        Terminal(stderr=True).print(f"without the float model: {found}; name it with --base", soft_wrap=True)
        return None
    return found


def _quiet(*, offline: bool) -> None:
    """No bars and banners of libraries; no look at a hub where the questions are local."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    hush("lm_eval", "lm-eval", "datasets", "transformers")


main = refusal.command(app)

if __name__ == "__main__":
    main()
