# SPDX-License-Identifier: Apache-2.0
"""The road from Python: `import dlqat`, then train (or prepare and save), fold, load_folded, export, check, evaluate.

Each is what the command of the same name does, with the same choices; what a command refuses is a Refusal here. Packages
are imported when a function needs them, so that `import dlqat` costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlqat import artifact as artifacts
from dlqat import folder_lock
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal
from dlqat.trainer import compose
from dlqat.trainer.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dlqat.runtime_tests.report.record import Report
    from dlqat.trainer.own_loop import Prepared

Folder = str | os.PathLike[str]


def train(
    model: Folder,
    output: Folder,
    data: Sequence[str] = (),
    *,
    quiet: bool = False,
    options: Options = compose.DEFAULT,
    **choices: Any,
) -> Path:
    """Fine-tune `model` (a folder, hub id, .gguf file or PEFT adapter) on `data`; `output`, a model_dir.

    options: steps, rates, objective (dlqat.Options). choices: the weights' part, as in dlqat.trainer.compose.request:
    bits, group_size, symmetric, activations, rank, method, recipe_file, init, ... The same call again continues.
    """
    request = compose.request(os.fspath(model), Path(output), data, options=options, **choices)
    return compose.run(request, Terminal(stderr=True, quiet=quiet))


def prepare(
    model: Folder,
    data: Sequence[str] = (),
    *,
    quiet: bool = False,
    options: Options = compose.DEFAULT,
    **choices: Any,
) -> Prepared:
    """`model` with QAT layers, to be trained by a loop of your own or transformers.Trainer (docs/training.md).

    data: for the start, as in `train`; without data it is plain scales. choices: as in `train`. `save` writes the result."""
    request = compose.for_own_loop(os.fspath(model), data, options=options, **choices)
    return compose.prepared(request, Terminal(stderr=True, quiet=quiet))


def save(prepared: Prepared, output: Folder) -> Path:
    """The trained model as a model_dir, which folds and exports as one of dlqat-train."""
    from dlqat.trainer import own_loop

    return own_loop.save(prepared, Path(output))


def fold(model_dir: Folder, base: str | None = None) -> Path:
    """model_dir/folded, the integers, written if they are not those of the adapters. `base`: the base model, if it moved."""
    from dlqat.exporters.pipeline import fold_if_needed

    return fold_if_needed(Path(model_dir), base)


def load_folded(model_dir: Folder, base: str | None = None) -> PreTrainedModel:
    """The folded model as transformers runs it, float32: the reference that every artifact is measured against."""
    from dlqat.runtime_tests.reference.model import Reference

    return Reference(fold(model_dir, base)).network


def export(
    model_dir: Folder,
    target: str = "onnx",
    *,
    max_context: int | None = None,
    output: Folder | None = None,
    base: str | None = None,
    **choices: str,
) -> Path:
    """Write the artifact of a target and return its folder. choices: the target's own, such as form="ort".

    Nothing is proved by this: `check` does."""
    from dlqat.exporters.pipeline import export as write

    where = None if output is None else Path(output)
    return write(Path(model_dir), target, choices, max_context, where, base)


def check(
    artifact: Folder,
    *,
    reference: Folder | None = None,
    device: str | None = None,
    rungs: Sequence[str] = (),
    quick: bool = False,
    threads: int = 0,
    output: Folder | None = None,
) -> Report:
    """Prove an artifact on a device; the report, which is also written into `output` (the artifact's folder).

    `report.verdict` is passed, failed or not verified; `report.checks` are the single ones. rungs: L0 to L5, all by
    default. reference: folded/, the one beside the artifact by default."""
    from dlqat.runtime_tests.check.run import QUICK, RUNGS, CheckRequest, prove, report_folder
    from dlqat.runtime_tests.report import record

    if unknown := sorted({*rungs} - {*RUNGS}):
        raise Refusal(f"{unknown[0]} is not a rung; known: {', '.join(RUNGS)}")
    folder = Path(artifact)
    found = artifacts.find(folder)
    beside = artifacts.folded_beside(folder) if reference is None else Path(reference)
    wanted = QUICK if quick else [r for r in RUNGS if r in rungs] or RUNGS
    where = None if output is None else Path(output)
    request = CheckRequest(found, beside, device, wanted, quick, threads or os.cpu_count() or 1, where)
    with report_folder(request) as target:
        report = prove(request)
        record.write(report, target)
    return report


def evaluate(
    artifact: Folder,
    *,
    tasks: Sequence[str] = (),
    data: Folder | None = None,
    text: Folder | None = None,
    prompts: Folder | None = None,
    limit: int | None = None,
    tokens: int | None = None,
    reference: Folder | None = None,
    device: str | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Accuracy of an artifact on a device beside folded/ in PyTorch: what dlqat-eval writes, as a dictionary
    (without its column of the float model).

    tasks: of lm_eval, with their questions in `data`; text: a file, for perplexity or (.jsonl) the answers of conversations;
    prompts: a test set of your own (.jsonl), whose answers stand under "prompts".
    """
    from dlqat.devices.all import usable
    from dlqat.devices.process.isolated import isolated
    from dlqat.runtime_tests.eval import run
    from dlqat.runtime_tests.eval.request import EvalRequest

    if not tasks and text is None and prompts is None:
        raise Refusal("nothing to measure; give prompts=FILE, tasks=['arc_easy'] with data=FOLDER, or text=FILE")
    folder = Path(artifact)
    found = artifacts.find(folder)
    beside = artifacts.folded_beside(folder) if reference is None else Path(reference)
    request = EvalRequest(
        found,
        isolated(usable(device, found)),
        beside,
        tuple(tasks),
        None if data is None else Path(data),
        limit,
        text=None if text is None else Path(text),
        tokens=tokens,
        threads=threads or os.cpu_count() or 1,
        prompts=None if prompts is None else Path(prompts),
    )
    with folder_lock.writing(folder), folder_lock.reading(beside):
        return run.run(request, lambda name, what: nullcontext(lambda *_: None))
