# SPDX-License-Identifier: Apache-2.0
"""A tiny folded model whose layers are every shape of the union in dlqat.folded, nested ones included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import models
from dlqat import folded
from dlqat.folded import Clustered, Folded, LowRank, Sum, disk
from dlqat.folded.disk import FoldedModel
from dlqat.grid import Grid


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator) * 0.1


def low_rank(out: int, inputs: int, generator: torch.Generator) -> LowRank:
    left = models.round_to_nearest(_random(generator, out, 16), Grid(8, 16, symmetric=False))
    right = models.round_to_nearest(_random(generator, 16, inputs), Grid(4, 32))
    return LowRank(left, right)


def clustered(out: int, inputs: int, generator: torch.Generator) -> Clustered:
    centroids = models.round_to_nearest(_random(generator, 16, inputs), Grid(4, 16))
    return Clustered(centroids, torch.randint(0, 16, (out,), generator=generator, dtype=torch.int32))


def fold_model(family: str) -> FoldedModel:
    """Block 0 has one of each; block 1 sums of them."""
    model, generator = models.fold_model(models.tiny(family)), torch.Generator().manual_seed(1)

    def shape(name: str) -> tuple[int, int]:
        return folded.shape(model.layers[name])

    changed: dict[str, Folded] = {}
    for name, make in (("self_attn.k_proj", low_rank), ("mlp.up_proj", clustered), ("mlp.down_proj", low_rank)):
        changed[f"model.layers.0.{name}"] = make(*shape(f"model.layers.0.{name}"), generator)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj"):
        at = f"model.layers.1.{name}"
        parts = clustered(*shape(at), generator), low_rank(*shape(at), generator), model.layers[at]
        changed[at] = Sum(parts)
    at = "model.layers.1.mlp.down_proj"
    out, inputs = shape(at)
    right = Sum((low_rank(32, inputs, generator), clustered(32, inputs, generator)))
    changed[at] = LowRank(clustered(out, 32, generator), right)
    return replace(model, layers={**model.layers, **changed})


def write_folded(path: Path, family: str) -> FoldedModel:
    model = fold_model(family)
    disk.write(model, path, files=path.parent)
    return model
