# SPDX-License-Identifier: Apache-2.0
"""dlqat-train from end to end: MODEL, data and options in, model_dir out.

    model_dir/
      dlqat.json              what was asked for: base model, recipe, data, options, method, versions; with digests
      plan.json               of a method that makes more of a layer than one grid: what each linear is
      training/               while it runs: start.safetensors (scales, zero-points, offsets), state.safetensors,
                              examples.sha256 (of the tokens)
      training_log.jsonl      one line a step        loss.png
      adapters.safetensors    the result; its presence says that training is complete
      tokenizer, chat template, generation_config

The same command again continues where it was stopped (request.py). Everything is refused before the weights are read
that can be refused then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from dlqat import adapter, atomic, folder_lock, own_folder, plan, source, tensor_file
from dlqat.adapter import ADAPTERS, RECORD
from dlqat.folded import disk
from dlqat.refusal import Refusal
from dlqat.source import Loaded, Source
from dlqat.terminal import Terminal
from dlqat.trainer import log, plot, precision, preflight, reach, state
from dlqat.trainer.data import self_data, template, training_data
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.layers.prepare import load, qat_layers
from dlqat.trainer.layers.qat import QATLinear
from dlqat.trainer.options import Options
from dlqat.trainer.request import START, TrainRequest, begun, finished, record
from dlqat.trainer.starts import by_name
from dlqat.trainer.starts.restore import restore
from dlqat.trainer.starts.start import Site
from dlqat.trainer.train import accelerator, train

TRAINING = "training"
EXAMPLES = "training/examples.sha256"


def run(request: TrainRequest, console: Terminal) -> Path:
    """Train and return model_dir. A finished model_dir of the same request is returned as it is.

    Refusal if another command is writing there; of several processes of one run the first holds the lock."""
    first = os.environ.get("RANK", "0") == "0"
    with folder_lock.writing(request.output) if first else nullcontext():
        return _run(request, console)


def _run(request: TrainRequest, console: Terminal) -> Path:
    origin = _origin(request, console)
    if (told := request.start.foretell(request.recipe, origin.decoder)) is not None:
        console.print(told)
    names = training_data.sources(request.data) if request.data else []
    wanted = record(request, origin, names)
    if finished(request.output, wanted):
        console.print(f"{request.output} is already trained with these options; nothing to do")
        return request.output
    runtime = accelerator(request.options, request.parallel)
    first = runtime.is_main_process
    loaded = source.load(origin)  # refuses a damaged tokenizer: before there is a model_dir
    if request.chat_template is not None:
        template.put(request.chat_template, loaded.tokenizer)
    reach.check(loaded.model, request.recipe)
    if first:
        _clear(request.output)
    with log.bar(console, quiet=not first) as progress:
        if precision.chosen(request.options.precision, runtime.device.type) == "fp32":
            loaded.model.float()  # whatever it is stored in: exact, and fold reads the same numbers
        loaded.model.to(runtime.device)
        batches = _batches(request, names, loaded, runtime, progress) if names else None
        if batches is not None:
            _enough(request, batches)
        if first:  # not before: bad data leave no model_dir
            _begin(request, loaded, wanted)
        if batches is not None:
            _same_examples(request.output, batches, write=first)
        _start(request, loaded, batches, runtime, progress, console)
        trained: Mapping[str, Tensor] = {}
        if request.options.steps and batches is not None:
            if first:
                _tell(console, loaded.model, batches, request.options)
            trained = _train(request, loaded.model, batches, runtime, progress)
    if first:
        _finish(request, trained)
    runtime.wait_for_everyone()
    return request.output


def _origin(request: TrainRequest, console: Terminal) -> Source:
    """The float model. Refusal, before a weight is read, if the recipe or the sequences do not fit it."""
    origin = source.resolve(request.model, request.base, text_only=request.text_only)
    for note in origin.stored.notes:
        console.print(note, soft_wrap=True)
    preflight.check(request.recipe, origin.decoder)
    if request.data:
        preflight.check_length(request.options.sequence_length, origin.decoder)
    return origin


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
        loaded.files(output)
        if request.chat_template is not None:
            template.write(str(loaded.tokenizer.chat_template), output)
        own_folder.note(output, *(output / name for name in disk.tokenizer_files(output)))


def _batches(
    request: TrainRequest, names: list[str], loaded: Loaded, runtime: Accelerator, progress: Progress
) -> Batches:
    options = request.options
    length = options.sequence_length
    content = options.steps and request.start.least(length) < length  # with as much as training sees
    wanted = max(options.steps * options.batch_size, 0 if content else -(-request.calibration // length))
    drawn = training_data.DataPlan(length, wanted, options.seed)
    task = progress.add_task("data", total=None, note="")

    def tell(done: int, wanted: int) -> None:
        progress.update(task, completed=done, total=wanted, note="the teacher writes")

    with runtime.main_process_first():  # one process writes the teacher's texts, the others find them
        examples = training_data.load(names, loaded, drawn, self_data.home(), tell)
    progress.update(task, total=1, completed=1, note=examples.summary())
    known = loaded.source.decoder.vocab_size
    pad = loaded.tokenizer.pad_token_id
    return Batches(examples, options.batch_size, options.seed, pad if isinstance(pad, int) and 0 <= pad < known else 0)


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
    progress: Progress,
    console: Terminal,
) -> None:
    """The layers of training as they start: found in training/start.safetensors, or made and left there."""
    path, model, seed = request.output / START, loaded.model, request.options.seed
    task = progress.add_task("scales", total=None, note="")

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
    for layer in qat_layers(model).values():
        if isinstance(layer, QATLinear):
            layer.shrink_base()
    model.to(runtime.device)
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
    return {**made.tensors, **_fixed(model)}


def _fixed(model: PreTrainedModel) -> dict[str, Tensor]:
    """What training leaves as it is: scales, zero-points, offsets; and LoRA's start."""
    return {
        f"{name}.{field}": tensor.detach().contiguous()
        for name, layer in qat_layers(model).items()
        for field, tensor in [*layer.named_buffers(recurse=False), *layer.named_parameters(recurse=False)]
        if field not in ("weight", "bias")
    }


def _tell(console: Terminal, model: PreTrainedModel, batches: Batches, options: Options) -> None:
    """Trained parameters as count and percentage, and the size of the work."""
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters()) - learn
    console.print(f"trained parameters: {learn:,} beside {whole:,} frozen ({100 * learn / whole:.2f} %)")
    console.print(f"data: {batches.examples.summary()}; {options.steps} steps of {options.batch_size} sequences")
    console.print(f"objective: {_objective(*options.objective(answers=batches.examples.answers))}", soft_wrap=True)


def _objective(kd: float, ce: float, blocks: float | None) -> str:
    """In words."""
    held = "" if blocks == 0 else f", and every block, weight {'by its bits' if blocks is None else f'{blocks:g}'}"
    learn, stay = (
        f"learn the data (cross entropy, weight {ce:g})",
        f"stay near the float model (KL, weight {kd:g}{held})",
    )
    if not ce:
        return f"{stay}; what the data say is not learned, for that: --ce 1"
    return f"{learn} and {stay}" if kd else learn


def _train(
    request: TrainRequest, model: PreTrainedModel, batches: Batches, runtime: Accelerator, progress: Progress
) -> Mapping[str, Tensor]:
    folder = request.output / TRAINING
    if not runtime.is_main_process:
        return train(model, batches, request.options, folder, runtime, lambda row: None)
    done = state.done(folder)
    rows = log.Log(request.output / log.FILE, progress, request.options.steps, done)
    try:
        return train(model, batches, request.options, folder, runtime, rows)
    finally:
        rows.close()


def _finish(request: TrainRequest, trained: Mapping[str, Tensor]) -> None:
    """Write the adapters, last of all; the resumable state is not needed any more."""
    output = request.output
    if request.options.steps:
        plot.write(output / log.FILE, output / "loss.png")
    start_file = tensor_file.every(output / START)
    adapters = {**start_file, **{name: tensor.cpu() for name, tensor in trained.items()}}
    adapter.write(adapters, output / ADAPTERS)
    for path in (output / START, output / EXAMPLES, output / TRAINING / state.FILE):
        for name in (path.name, f".{path.name}{atomic.DRAFT}"):
            path.with_name(name).unlink(missing_ok=True)
    if not any((output / TRAINING).iterdir()):
        (output / TRAINING).rmdir()
