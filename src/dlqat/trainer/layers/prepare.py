# SPDX-License-Identifier: Apache-2.0
"""Turn a float model into one in training: the recipe's modules become QAT layers, all else is frozen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlqat.adapter import damage
from dlqat.architecture import EMBEDDING, HEAD
from dlqat.grid import Grid
from dlqat.recipe import LayerSpec, Recipe
from dlqat.refusal import Refusal
from dlqat.trainer.layers.qat import QATEmbedding, QATLayer, QATLinear
from dlqat.trainer.rounding.search import search

Find = Callable[[str, Tensor, Grid], tuple[Tensor, Tensor | None]]
"""Scales and zero-points of the weight of a module, by its name."""


def nearest(name: str, weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Those of least squared error."""
    return search(weight, grid)


def shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear and embedding by module name; a tied head is its embedding."""
    tied = model.config.tie_word_embeddings
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding)) and not (tied and name == HEAD)
    }


def prepare(
    model: PreTrainedModel,
    recipe: Recipe,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
    but: Container[str] = (),
    find: Find = nearest,
) -> dict[str, LayerSpec]:
    """Replace `model`'s modules in place and freeze the rest; the specs of what the recipe matches.

    `but`: modules that something else replaces (compress.py). LoRA's random start depends on `seed` alone. `find`
    makes the scales, and `progress` hears each module's name before.
    """
    specs = recipe.layers(shapes(model))
    if not specs:
        raise Refusal("the recipe matches no module of this model; its rules are matched against whole module names")
    for name in specs:
        module = model.get_submodule(name)
        if type(module) not in (nn.Linear, nn.Embedding, *_scaled(module)):  # a subclass's own forward would be lost
            kind = type(module).__name__
            raise Refusal(f"{name} is a {kind}; only a plain Linear or Embedding can be quantized; change the recipe")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, spec in specs.items():
            if name in but:
                continue
            progress(name)
            put(model, name, _layer(model.get_submodule(name), name, spec, find))
    if model.config.tie_word_embeddings and EMBEDDING in specs:
        _tie_head(model, recipe)
    return specs


def _scaled(module: nn.Module) -> tuple[type, ...]:
    """The class of an embedding whose forward is known: the rows times scalar_embed_scale."""
    name = type(module).__name__
    if name not in _SCALED:
        return ()
    known = getattr(importlib.import_module(_SCALED[name]), name)  # seconds
    return (known,) if type(module) is known else ()


_SCALED = {f"Gemma{n}TextScaledWordEmbedding": f"transformers.models.gemma{n}.modeling_gemma{n}" for n in (2, 3)}


def _layer(module: nn.Module, name: str, spec: LayerSpec, find: Find) -> QATLayer:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    scales, zero_points = find(name, weight.detach(), spec.grid)
    if isinstance(module, nn.Embedding):
        factor = float(getattr(module, "scalar_embed_scale", 1.0)) if _scaled(module) else 1.0
        return QATEmbedding(weight, spec, scales, zero_points, factor)
    assert isinstance(module, nn.Linear)
    return QATLinear(module, spec, scales, zero_points)


def _tie_head(model: PreTrainedModel, recipe: Recipe) -> None:
    """The head of a tied model multiplies with the embedding's own integers."""
    embedding, head = model.get_submodule(EMBEDDING), model.get_submodule(HEAD)
    assert isinstance(embedding, QATEmbedding) and isinstance(head, nn.Linear)
    wanted = recipe.spec(HEAD)
    spec = replace(embedding.spec, rank=0, magnitude=False, activation_bits=wanted.activation_bits if wanted else 0)
    tied = QATLinear(head, spec, embedding.scales, embedding.zero_points)
    tied.weight = cast("nn.Parameter", embedding.weight)
    put(model, HEAD, tied)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the module of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def put_offset(model: nn.Module, name: str, offset: Tensor | None) -> None:
    """The start of a layer; a tied head has its embedding's."""
    layer = model.get_submodule(name)
    assert isinstance(layer, QATLayer)
    layer.offset = offset
    if name == EMBEDDING and (head := tied_head(model)) is not None:
        head.offset = offset


def tied_head(model: nn.Module) -> QATLinear | None:
    """The head that multiplies with the integers of the embedding, if there is one."""
    found = dict(model.named_modules())
    head, embedding = found.get(HEAD), found.get(EMBEDDING)
    if isinstance(head, QATLinear) and isinstance(embedding, QATEmbedding) and head.scales is embedding.scales:
        return head
    return None


def qat_layers(model: nn.Module) -> dict[str, QATLayer]:
    """The QAT layers of a prepared model by module name; a tied head is left to its embedding."""
    tied = tied_head(model)
    return {name: m for name, m in model.named_modules() if isinstance(m, QATLayer) and m is not tied}


def fixed(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the QAT layers by its full name, but base weights and biases: what an adapter file holds of them."""
    return {
        f"{name}.{field}": tensor.detach().contiguous()
        for name, layer in qat_layers(model).items()
        for field, tensor in [*layer.named_buffers(recurse=False), *layer.named_parameters(recurse=False)]
        if field not in ("weight", "bias")
    }


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put adapter tensors (by full name) into a prepared model; Refusal if one is missing or misshapen."""
    with torch.no_grad():
        for name, layer in qat_layers(model).items():
            put_offset(model, name, tensors.get(f"{name}.offset"))
            if isinstance(layer, QATLinear):
                layer.mask = tensors.get(f"{name}.mask")
            for field, own in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
                if field in ("weight", "bias"):
                    continue
                found = tensors.get(f"{name}.{field}")
                if found is None or found.shape != own.shape:
                    raise Refusal(f"adapter tensor {name}.{field} is missing or has another shape; train again")
                own.copy_(found)
            if isinstance(layer, QATLinear) and (reason := damage(layer.adapter())) is not None:
                raise Refusal(f"adapter tensor {name}.{reason}; train again")
