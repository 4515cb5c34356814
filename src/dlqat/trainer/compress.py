# SPDX-License-Identifier: Apache-2.0
"""Run a compression method over a model: the linears of the blocks become what its plan says, block by block.

A block is measured with what the already compressed blocks before it give (calibrate.walk), and only one block's
second moments exist at a time. The result is a plan and one flat set of tensors, the start of training or, where
nothing is trained, what folds. `restore` builds the same modules from them in a fresh model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlqat import plan
from dlqat.architecture import Decoder
from dlqat.plan import Plan, Shape
from dlqat.recipe import Recipe
from dlqat.trainer.calibrate import Walked, walk
from dlqat.trainer.methods.method import Method
from dlqat.trainer.prepare import put
from dlqat.trainer.union import module

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
    calibration = tokens() if method.calibrated or method.influenced else None
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


@dataclass(frozen=True, slots=True)
class Line:
    """The linears that become the same."""

    layers: str
    """q_proj, k_proj, ..."""
    count: int
    becomes: str
    paper_bits: float
    """Mean over its layers, as the method's paper counts."""
    bits: float
    """Mean bits a weight that are stored: codes, 16-bit scales, zero-points, labels."""


def summary(method: Method, nodes: Plan, shapes: Mapping[str, Shape]) -> list[Line]:
    """The plan for people: kinds of layers, then all together."""
    kinds: dict[str, list[str]] = {}
    for name, node in nodes.items():
        kinds.setdefault(describe(node), []).append(name)
    lines = [_line(becomes, names, method, nodes, shapes) for becomes, names in kinds.items()]
    return lines if len(lines) == 1 else [*lines, _line("together", list(nodes), method, nodes, shapes)]


def _line(becomes: str, names: list[str], method: Method, nodes: Plan, shapes: Mapping[str, Shape]) -> Line:
    kinds = ", ".join(dict.fromkeys(n.rpartition(".")[2] for n in names))
    sizes = [shapes[n][0] * shapes[n][1] for n in names]
    paper = sum(method.paper_bits(nodes[n], shapes[n]) * size for n, size in zip(names, sizes, strict=True))
    stored = sum(plan.bits(nodes[n], shapes[n]) for n in names)
    return Line(kinds, len(names), becomes, paper / sum(sizes), stored / sum(sizes))


def describe(node: plan.Node) -> str:
    """A node in a few words."""
    match node:
        case plan.Factors(rank, left, right):
            return f"rank {rank} ({describe(left)}, {describe(right)})"
        case plan.Shared(clusters, centroids):
            return f"{clusters} shared rows ({describe(centroids)})"
        case plan.Parts(parts):
            return " + ".join(describe(part) for part in parts)
        case _:
            return str(node.grid)
