# SPDX-License-Identifier: Apache-2.0
"""dlqat-train from end to end: MODEL, data and options in, model_dir out.

    model_dir/
      dlqat.json              what was asked for: base model, recipe, data, options, method, versions; with digests
      plan.json               of a method that makes more of a layer than one grid: what each linear is
      training/               while it runs: start.safetensors (scales, zero-points, offsets), state.safetensors,
                              examples.sha256 (of the tokens)
      training_log.jsonl      one line a step        loss.png
      held_out.jsonl          the loss on examples that were not trained on        samples.json   answers to them
      adapters.safetensors    the result; its presence says that training is complete
      tokenizer, chat template, generation_config

The same command again continues where it was stopped (request.py). Everything is refused before the weights are read
that can be refused then.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from dlqat import adapter, atomic, folder_lock, own_folder, plan, tensor_file
from dlqat.folded import disk
from dlqat.model_dir import ADAPTERS, RECORD
from dlqat.progress import Bars
from dlqat.refusal import Refusal
from dlqat.source import Loaded
from dlqat.terminal import Terminal
from dlqat.trainer import dry_run, held_out, log, opened, plot, samples, state
from dlqat.trainer.course import Course
from dlqat.trainer.data import self_data, training_data
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.data.examples import Examples
from dlqat.trainer.layers.prepare import fixed, load
from dlqat.trainer.request import START, TRAINING, TrainRequest, begun, finished, record
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.restore import restore
from dlqat.trainer.starts.start import Site
from dlqat.trainer.train import accelerator

EXAMPLES = "training/examples.sha256"


def run(request: TrainRequest, console: Terminal) -> Path:
    """Train and return model_dir. A finished model_dir of the same request is returned as it is.

    Refusal if another command is writing there; of several processes of one run the first holds the lock."""
    first = os.environ.get("RANK", "0") == "0"
    with folder_lock.writing(request.output) if first else nullcontext():
        return _run(request, console)


def _run(request: TrainRequest, console: Terminal) -> Path:
    origin = opened.origin(request, console)
    if (told := request.start.foretell(request.recipe, origin.decoder)) is not None:
        console.print(told)
    names = training_data.sources(request.data) if request.data else []
    wanted = record(request, origin, names)
    if finished(request.output, wanted):
        console.print(f"{request.output} is already trained with these options; nothing to do")
        return request.output
    if (reason := dry_run.short(request, origin, dry_run.needed(request, origin), dry_run.memory())) is not None:
        console.print(reason, soft_wrap=True)
    runtime = accelerator(request.options, request.parallel)
    first = runtime.is_main_process
    loaded = opened.load(request, origin)
    if first:
        _clear(request.output)
    with Bars(console, quiet=not first) as progress:
        opened.place(request, loaded, runtime.device)
        examples = _examples(request, names, loaded, runtime, progress) if names else None
        batches = held = None
        if examples is not None:
            request, batches, held = _shared_out(request, loaded, examples)
            _enough(request, batches)
        if first:  # not before: bad data leave no model_dir
            _begin(request, loaded, wanted)
        if batches is not None:
            _same_examples(request.output, batches, write=first)
        _start(request, loaded, batches, runtime, progress, console)
        trained: Mapping[str, Tensor] = {}
        course = (
            Course(request, loaded, batches, held, runtime) if request.options.steps and batches is not None else None
        )
        if course is not None:
            if first:
                course.tell(console)
            trained = course.train(progress, console)
    if first:
        _finish(request, trained, course)
        if course is not None:
            course.show(console)
    runtime.wait_for_everyone()
    return request.output


def _clear(output: Path) -> None:
    """Delete what is of another model or method. Refusal of a file there that dlqat did not write."""
    if (output / TRAINING).is_symlink():
        raise Refusal(f"{output / TRAINING} is a symbolic link; remove it")
    if not begun(output):
        own_folder.delete(output, EXAMPLES, plan.FILE, *disk.tokenizer_files(output))


def _begin(request: TrainRequest, loaded: Loaded, wanted: Mapping[str, Any]) -> None:
    """Write the record, and what an app needs besides the weights."""
    output, fresh = request.output, not begun(request.output)
    (output / TRAINING).mkdir(parents=True, exist_ok=True)
    atomic.text(output / RECORD, json.dumps(wanted, indent=1) + "\n")
    if fresh:
        opened.write_files(request, loaded, output)


def _examples(
    request: TrainRequest, names: list[str], loaded: Loaded, runtime: Accelerator, progress: Bars
) -> Examples:
    options = request.options
    length = options.sequence_length
    content = options.steps and request.start.least(length) < length  # with as much as training sees
    wanted = max(options.steps * options.batch_size, 0 if content else -(-request.calibration // length))
    if options.epochs is not None:
        if training_data.SELF in names:
            raise Refusal(
                "--epochs counts passes over data that are there, and --data self writes as much as is wanted; give --steps"
            )
        wanted = sys.maxsize  # of a hub dataset: all of it
    drawn = training_data.DataPlan(length, wanted, options.seed)
    task = progress.add_task("data", total=None)

    def tell(done: int, wanted: int) -> None:
        progress.update(task, completed=done, total=wanted, note="the teacher writes")

    with runtime.main_process_first():  # one process writes the teacher's texts, the others find them
        examples = training_data.load(names, loaded, drawn, self_data.home(), tell)
    progress.update(task, total=1, completed=1, note=examples.summary())
    return examples


def _shared_out(
    request: TrainRequest, loaded: Loaded, examples: Examples
) -> tuple[TrainRequest, Batches, Batches | None]:
    """The request with its steps counted, what is trained on, and what is held out of it."""
    options = request.options
    known, pad = loaded.source.decoder.vocab_size, loaded.tokenizer.pad_token_id
    pad = pad if isinstance(pad, int) and 0 <= pad < known else 0
    rest, held = held_out.split(examples, options.eval_share if options.steps else 0.0, options.seed)
    options = options.over(len(rest))
    batches = Batches(rest, options.batch_size, options.seed, pad)
    at_once = options.micro_batch or options.batch_size  # what fits into memory while training
    watched = Batches(held, at_once, options.seed, pad) if len(held) else None
    return replace(request, options=options), batches, watched


def _enough(request: TrainRequest, batches: Batches) -> None:
    """Refusal, before scales are searched, if the data are too short for the start."""
    have, length = len(batches.examples.ids), request.options.sequence_length
    if have < request.start.least(length):
        raise Refusal(
            f"the start {by_name.record(request.start)['name']} calibrates on sequences of {length} tokens, and the data "
            f"have {have} in all; give more data, lower --sequence-length, or take --init mse, which needs no text"
        )


def _same_examples(output: Path, batches: Batches, *, write: bool) -> None:
    """Refusal if the run was begun on other tokens: a hub dataset or a tokenizer that has changed since."""
    found, path = batches.examples.digest(), output / EXAMPLES
    if path.exists() and path.read_text(encoding="utf-8") != found:
        raise Refusal(f"{output} was begun on other training examples; choose another --output, or delete it")
    if write:
        atomic.text(path, found)
        own_folder.note(output, path)


def _start(
    request: TrainRequest,
    loaded: Loaded,
    batches: Batches | None,
    runtime: Accelerator,
    progress: Bars,
    console: Terminal,
) -> None:
    """The layers of training as they start: found in training/start.safetensors, or made and left there."""
    path, model, seed = request.output / START, loaded.model, request.options.seed
    task = progress.add_task("scales", total=None)

    def tell(name: str) -> None:
        progress.update(task, advance=1, note=name)

    made = not path.exists() and runtime.is_main_process
    if made:
        tensors = _make_start(request, model, batches, tell, console)
        with atomic.file(path) as draft:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft)
    runtime.wait_for_everyone()
    tensors = tensor_file.every(path, f"; delete {path.parent} to begin again")
    if not made:
        more = (request.output / plan.FILE).exists()
        restore(model, request.recipe, plan.read(request.output) if more else {}, tensors, seed)
    load(model, tensors)
    opened.settle(loaded, runtime.device)
    progress.update(task, total=1, completed=1, note="")


def _make_start(
    request: TrainRequest,
    model: PreTrainedModel,
    batches: Batches | None,
    tell: Callable[[str], None],
    console: Terminal,
) -> dict[str, Tensor]:
    """Bring the float model to its start; every tensor of it but the base weights."""

    def text() -> Tensor:
        if batches is None:
            raise Refusal("the start needs text to calibrate on; name it with --data")
        length = min(request.options.sequence_length, len(batches.examples.ids))
        found = batches.calibration(request.calibration, length)
        less = f" ({request.calibration:,} asked for: the data have no more)"
        said = f"calibration: {found.numel():,} tokens, {len(found)} sequences"
        console.print(said + less * (found.numel() < request.calibration))
        return found

    site = Site(model, request.recipe, request.options.seed, text, tell, console.print)
    made = request.start.prepare(site)
    if made.plan:
        plan.write(made.plan, request.output)
        own_folder.note(request.output, request.output / plan.FILE)
    return {**made.tensors, **fixed(model)}


def _finish(request: TrainRequest, trained: Mapping[str, Tensor], course: Course | None) -> None:
    """Write the adapters, last of all; the resumable state is not needed any more."""
    output = request.output
    if request.options.steps:
        plot.write(output / log.FILE, output / "loss.png")
    if course is not None:
        course.ask_again()
    start_file = tensor_file.every(output / START)
    adapters = {**start_file, **{name: tensor.cpu() for name, tensor in trained.items()}}
    adapter.write(adapters, output / ADAPTERS)
    for path in (output / START, output / EXAMPLES, *(output / TRAINING / name for name in (state.FILE, samples.FILE))):
        for name in (path.name, f".{path.name}{atomic.DRAFT}"):
            path.with_name(name).unlink(missing_ok=True)
    if not any((output / TRAINING).iterdir()):
        (output / TRAINING).rmdir()
