# SPDX-License-Identifier: Apache-2.0
"""Walk a model block by block on calibration tokens: what post-training methods see of each linear.

Only one block's activations and second moments exist at a time. A block is visited with the inputs that
the already rounded blocks before it give, so later blocks repair what earlier ones lost.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlqat.trainer import precision
from dlqat.trainer.layers.qat import QATLinear, teacher

Walked = nn.Linear | QATLinear
Visit = Callable[[str, Walked, Tensor], None]
"""(name, layer, X^T X [in, in]); it may put another module in the layer's place."""


class _Stop(Exception):
    """Ends a forward pass of which only the first block's inputs are wanted."""


@torch.no_grad()
def walk(
    model: PreTrainedModel,
    tokens: Tensor,
    visit: Visit,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Visit every linear, QATLinear or still float, of every block, in forward order.

    tokens: [sequences, length]. The layers of one block are all seen in float, before any of them is rounded.
    """
    names = {module: name for name, module in model.named_modules()}
    blocks: nn.ModuleList = model.get_submodule("model.layers")  # pyright: ignore[reportAssignmentType]
    hidden, called = block_inputs(model, tokens)
    inputs = list(hidden.split(4))
    for block, arguments in zip(blocks, called, strict=True):
        progress(names[block])
        for layer, moment in _second_moments(block, inputs, arguments).items():
            visit(names[layer], layer, moment)
        inputs = [block_output(block(x, **arguments)) for x in inputs]


SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Layers that read the same input as another: its second moments are measured once."""


def _second_moments(block: nn.Module, inputs: list[Tensor], arguments: dict[str, Any]) -> dict[Walked, Tensor]:
    """X^T X of what each of the block's layers reads, the block in float: on scales searched before any calibration 2 bits
    leave nothing of what a layer will see (GPTQ from there: perplexity 159 instead of 118)."""
    layers = {n.rpartition(".")[2]: m for n, m in block.named_modules() if isinstance(m, Walked)}
    own = {name: layer for name, layer in layers.items() if SHARED.get(name) not in layers}
    moments = {
        name: torch.zeros(m.weight.shape[1], m.weight.shape[1], device=m.weight.device) for name, m in own.items()
    }

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().flatten(0, -2).float()
            moments[name].addmm_(x.T, x)

        return add

    with teacher(block), ExitStack() as hooks:
        for name, layer in own.items():
            hooks.callback(layer.register_forward_pre_hook(hook(name)).remove)
        for x in inputs:
            block(x, **arguments)
    return {layer: moments[name if name in own else SHARED[name]] for name, layer in layers.items()}


@torch.no_grad()
def mean_squares(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """The mean square [in] of every input of every linear of the blocks of a float model, by name: one forward pass, and of
    X^T X the diagonal only. In bf16 where that is fast: its rounding is far below what one text differs from another."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            sums[name] = sums.get(name, 0) + args[0].flatten(0, -2).float().square().sum(0)

        return add

    blocks = model.get_submodule("model.layers")
    linears = {f"model.layers.{n}": m for n, m in blocks.named_modules() if isinstance(m, nn.Linear)}
    read = {name: _source(name) if _source(name) in linears else name for name in linears}
    with ExitStack() as hooks, precision.autocast(model.device.type):
        for name in set(read.values()):
            hooks.callback(linears[name].register_forward_pre_hook(hook(name)).remove)
        for sequences in tokens.split(4):
            model.model(sequences.to(model.device), use_cache=False)
    return {name: sums[source] / tokens.numel() for name, source in read.items()}


@torch.no_grad()
def head_moments(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """X^T X [hidden, hidden] of what the head of the float model reads."""
    width = model.config.hidden_size
    moments = torch.zeros(width, width, device=model.device)
    with teacher(model), precision.autocast(model.device.type):
        for sequences in tokens.split(4):
            x = model.model(sequences.to(model.device), use_cache=False).last_hidden_state.flatten(0, -2).float()
            moments.addmm_(x.T, x)
    return moments


def _source(name: str) -> str:
    """The layer whose input the layer of that name shares."""
    parent, _, own = name.rpartition(".")
    return f"{parent}.{SHARED.get(own, own)}"


def block_inputs(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """What the first block reads, hidden states [sequences, length, hidden], and the other arguments of every block as they
    are for one sequence (they broadcast): blocks of another attention window get another mask."""
    blocks: nn.ModuleList = model.get_submodule("model.layers")  # pyright: ignore[reportAssignmentType]
    inputs: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is blocks[0]:
            inputs.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
        if len(arguments) == len(blocks):
            raise _Stop
        arguments.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(catch, with_kwargs=True).remove)
        for sequence in tokens.split(1):
            with suppress(_Stop):
                model.model(sequence.to(model.device), use_cache=False)
    return torch.cat(inputs), arguments


def block_output(result: Any) -> Tensor:
    """The hidden states of what a block returns."""
    return result if isinstance(result, Tensor) else result[0]
