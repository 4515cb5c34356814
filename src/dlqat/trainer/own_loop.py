# SPDX-License-Identifier: Apache-2.0
"""A model for a loop of one's own (plain PyTorch, transformers.Trainer), and the way from there into a model_dir.

    prepared = dlqat.prepare("./my-finetune", ["chats.jsonl"])      # QAT layers in place of the linears
    adam = torch.optim.AdamW(prepared.parameter_groups(), weight_decay=0.0)
    prepared.loss(input_ids, labels).backward()                     # or a loss of your own on prepared.model
    dlqat.save(prepared, "model_dir")                               # then fold, export, check as ever

What is saved is what the last forward pass multiplied with. How it was trained, dlqat does not know: the record says that
it was a loop of somebody's own, and dlqat-train does not continue it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlqat import adapter, atomic, folder_lock, json_file, own_folder, plan
from dlqat.model_dir import ADAPTERS, RECORD
from dlqat.refusal import Refusal
from dlqat.source import Loaded
from dlqat.terminal import Terminal
from dlqat.trainer import opened, precision
from dlqat.trainer.data import self_data, training_data
from dlqat.trainer.data.batches import Batches
from dlqat.trainer.data.examples import IGNORED
from dlqat.trainer.distill import Mix
from dlqat.trainer.layers.prepare import fixed, qat_layers
from dlqat.trainer.request import TrainRequest, record
from dlqat.trainer.starts.start import Made, Site
from dlqat.trainer.train import Loss, optimizer

OWN_LOOP = "a loop of somebody's own"


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A model at its start, on the device that trains here."""

    loaded: Loaded
    request: TrainRequest
    made: Made
    objective: Loss

    @property
    def model(self) -> PreTrainedModel:
        """To train: what requires a gradient is LoRA and magnitudes (or what the choices say)."""
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For AdamW: LoRA, and magnitudes by the bits of their layer, each with its rate (dlqat.Options)."""
        groups: list[dict[str, Any]] = optimizer(self.model, self.request.options).param_groups
        return [{"params": group["params"], "lr": group["lr"]} for group in groups]

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """dlqat's objective, mean over the labels that count: KL to the float model and cross entropy, by options.kd and .ce
        (default: 1 and 1). input_ids, labels: int64 [batch, length], labels -100 where nothing is learned, not shifted."""
        count = (labels[:, 1:] != IGNORED).sum()
        value: Tensor = self.objective(input_ids, labels)
        return value / count


def prepare(request: TrainRequest, console: Terminal) -> Prepared:
    """The model of `request` at its start. `request.data` are for the start alone, and may be empty if it needs none."""
    loaded = opened.load(request, opened.origin(request, console))
    device = torch.device(precision.device())
    opened.place(request, loaded, device)
    made = request.start.prepare(
        Site(loaded.model, request.recipe, request.options.seed, lambda: _text(request, loaded))
    )
    opened.settle(loaded, device)
    mix = Mix(*request.options.objective(answers=True))
    return Prepared(loaded, request, made, Loss(loaded.model, mix))


def _text(request: TrainRequest, loaded: Loaded) -> Tensor:
    """What the start sees."""
    options = request.options
    wanted = training_data.DataPlan(
        options.sequence_length, -(-request.calibration // options.sequence_length), options.seed
    )
    examples = training_data.load(request.data, loaded, wanted, self_data.home())
    length = min(options.sequence_length, len(examples.ids))
    return Batches(examples, options.batch_size, options.seed).calibration(request.calibration, length)


def save(prepared: Prepared, output: Path) -> Path:
    """Write model_dir, the adapters last. Refusal if something else stands there, or a trained number does not fold."""
    request = replace(prepared.request, output=output)
    for name, layer in qat_layers(prepared.model).items():
        if (reason := adapter.damage(layer.adapter())) is not None:
            raise Refusal(f"{name}.{reason}: this model cannot be folded; train with a lower rate, or clip gradients")
    with folder_lock.writing(output):
        _may_write(output)
        wanted = record(request, prepared.loaded.source, [])
        output.mkdir(parents=True, exist_ok=True)
        (output / ADAPTERS).unlink(missing_ok=True)
        atomic.text(output / RECORD, json.dumps(wanted | {"trained": OWN_LOOP}, indent=1) + "\n")
        opened.write_files(request, prepared.loaded, output)
        if prepared.made.plan:
            plan.write(prepared.made.plan, output)
            own_folder.note(output, output / plan.FILE)
        trained = {n: p.detach() for n, p in prepared.model.named_parameters() if p.requires_grad}
        tensors = {**prepared.made.tensors, **fixed(prepared.model), **trained}
        adapter.write(tensors, output / ADAPTERS)
    return output


def _may_write(output: Path) -> None:
    """Refusal of a folder that holds something other than an earlier save of this kind."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if (output / RECORD).exists() and json_file.read(output / RECORD).get("trained") == OWN_LOOP:
        return
    raise Refusal(f"{output} exists and was not written by dlqat.save; choose another folder")
