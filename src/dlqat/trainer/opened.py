# SPDX-License-Identifier: Apache-2.0
"""The model of a request, from its headers to the layers that train: what dlqat-train and a loop of one's own have in common."""

from __future__ import annotations

from pathlib import Path

import torch

from dlqat import own_folder, source
from dlqat.folded import disk
from dlqat.source import Loaded, Source
from dlqat.terminal import Terminal
from dlqat.trainer import precision, preflight, reach
from dlqat.trainer.data import template
from dlqat.trainer.layers.prepare import qat_layers
from dlqat.trainer.layers.qat import QATLinear
from dlqat.trainer.request import TrainRequest


def origin(request: TrainRequest, console: Terminal) -> Source:
    """The float model. Refusal, before a weight is read, if the recipe or the sequences do not fit it."""
    found = source.resolve(request.model, request.base, text_only=request.text_only)
    for note in found.stored.notes:
        console.print(note, soft_wrap=True)
    preflight.check(request.recipe, found.decoder)
    if request.data:
        preflight.check_length(request.options.sequence_length, found.decoder)
    return found


def load(request: TrainRequest, found: Source) -> Loaded:
    """In memory, with the chat template that was asked for."""
    loaded = source.load(found)  # refuses a damaged tokenizer: before there is a model_dir
    if request.chat_template is not None:
        template.put(request.chat_template, loaded.tokenizer)
    reach.check(loaded.model, request.recipe)
    return loaded


def place(request: TrainRequest, loaded: Loaded, device: torch.device) -> None:
    """Bring it to where it trains, in the precision that trains there."""
    if precision.chosen(request.options.precision, device.type) == "fp32":
        loaded.model.float()  # whatever it is stored in: exact, and fold reads the same numbers
    loaded.model.to(device)  # pyright: ignore[reportArgumentType]


def settle(loaded: Loaded, device: torch.device) -> None:
    """After the start: base weights as the recipe keeps them, everything on the device."""
    for layer in qat_layers(loaded.model).values():
        if isinstance(layer, QATLinear):
            layer.shrink_base()
    loaded.model.to(device)  # pyright: ignore[reportArgumentType]


def write_files(request: TrainRequest, loaded: Loaded, output: Path) -> None:
    """What an app needs besides the weights."""
    loaded.files(output)
    if request.chat_template is not None:
        template.write(str(loaded.tokenizer.chat_template), output)
    own_folder.note(output, *(output / name for name in disk.tokenizer_files(output)))
