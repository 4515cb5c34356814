# SPDX-License-Identifier: Apache-2.0
"""Run a compression method over a model: the linears of the blocks become what its plan says, block by block.

A block is measured with what the already compressed blocks before it give (calibrate.walk), and only one block's
second moments exist at a time. The result is a plan and one flat set of tensors, the start of training or, where
nothing is trained, what folds. `restore` builds the same modules from them in a fresh model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlqat import plan
from dlqat.architecture import Decoder
from dlqat.plan import Plan
from dlqat.recipe import Recipe
from dlqat.trainer.calibrate import Walked, walk
from dlqat.trainer.layers.compound import module
from dlqat.trainer.layers.prepare import put
from dlqat.trainer.methods.method import Method

Progress = Callable[[str], None]


def first_plan(method: Method, recipe: Recipe, decoder: Decoder) -> Plan:
    """The plan as far as shapes tell it (influence: uniform). Refusal for what cannot be."""
    return _plan(method, recipe, decoder, [1.0] * decoder.layers)


def _plan(method: Method, recipe: Recipe, decoder: Decoder, influence: list[float]) -> Plan:
    shapes = decoder.linears()
    made = method.plan(recipe.layers(shapes), shapes, influence)
    plan.check(made, shapes)
    return made


@torch.no_grad()
def compress(
    model: PreTrainedModel,
    method: Method,
    recipe: Recipe,
    decoder: Decoder,
    tokens: Callable[[], Tensor],
    progress: Progress = lambda name: None,
    seed: int = 0,
) -> tuple[Plan, dict[str, Tensor]]:
    """Put the method's modules into `model`; its plan, and the tensors that `restore` needs.

    tokens: gives calibration text [sequences, length]; not asked for by a method that needs none."""
    calibration = tokens().to(model.device) if method.calibrated or method.influenced else None
    layers = decoder.layers
    influence = [1.0] * layers if calibration is None or not method.influenced else influences(model, calibration)
    nodes = _plan(method, recipe, decoder, influence)
    tensors: dict[str, Tensor] = {}

    def visit(name: str, layer: Walked, moments: Tensor | None) -> None:
        if name not in nodes or not isinstance(layer, nn.Linear):
            return
        made = method.make(name, nodes[name], layer.weight.detach().float(), moments)
        tensors.update(made)
        put(model, name, module(nodes[name], name, layer, made))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if calibration is not None and method.calibrated:
            walk(model, calibration, visit, progress)
        else:
            for name in nodes:
                progress(name)
                layer = model.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                visit(name, layer, None)
    return nodes, tensors


def restore(model: PreTrainedModel, nodes: Plan, tensors: Mapping[str, Tensor], seed: int = 0) -> None:
    """Put the modules of a plan into a float model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, node in nodes.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            put(model, name, module(node, name, layer, tensors))


def influences(model: PreTrainedModel, tokens: Tensor) -> list[float]:
    """1 - cos(input, output) of every block, the mean over tokens: how much a block changes what passes through."""
    blocks: nn.ModuleList = model.get_submodule("model.layers")  # pyright: ignore[reportAssignmentType]
    sums = [0.0] * len(blocks)

    def note(i: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            y = output if isinstance(output, Tensor) else output[0]
            sums[i] += float((1 - F.cosine_similarity(args[0].float(), y.float(), dim=-1)).sum())

        return hook

    handles = [block.register_forward_hook(note(i)) for i, block in enumerate(blocks)]
    try:
        for sequences in tokens.split(4):
            model.model(sequences, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [max(s / tokens.numel(), 0.0) for s in sums]
