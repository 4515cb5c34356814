# SPDX-License-Identifier: Apache-2.0
"""Somebody else's .gguf file of the model, beside folded/: what another conversion made of the integers that were trained.

Such a file need not be on our grid (K-quants are not on any), so values are compared, in the order of transformers' rows:
how many are still the trained ones, how many would be another code of the trained grid, and how far they are away.
The file is read as dlqat-train reads one, blocks decoded by gguf-py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlqat import folded, source
from dlqat.folded import Quantized, disk
from dlqat.folded.disk import FoldedModel
from dlqat.grid import quantize
from dlqat.refusal import Refusal
from dlqat.source import gguf_file
from dlqat.source.gguf_model import names


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter."""

    name: str
    kind: str
    """ggml's type in the file."""
    total: int
    kept: int
    """Values that are equal to the trained ones, bit for bit."""
    moved: int
    """Values whose nearest code of the trained grid is another one; 0 where nothing was trained to a grid."""
    distance: float
    """|theirs - ours| / |ours|, as root mean squares."""


def compare(file: Path, reference: Path) -> Iterator[Row]:
    """Every parameter of folded/. Refusal if the file is not this model, or not a .gguf file that is read."""
    model = disk.read(reference)
    found = source.resolve(str(file))
    read = gguf_file.read(file)
    kinds = {name: gguf_file.type_name(read.table[own].kind) for name, own in names(read, found.decoder).items()}
    wanted = {name: tuple(w.shape) for name, w in _parameters(model)}
    if odd := sorted(name for name, shape in found.stored.shapes.items() if wanted.get(name) != tuple(shape)):
        raise Refusal(f"{file} is another model than {reference}: {odd[0]} has the shape {found.stored.shapes[odd[0]]}")
    if lacking := sorted(set(wanted) - set(found.stored.shapes)):
        raise Refusal(f"{file} is another model than {reference}: it lacks {lacking[0]}")
    for name, ours in _parameters(model):
        yield _row(name, kinds[name], found.stored.tensor(name), ours, model.layers.get(name.removesuffix(".weight")))


def _parameters(model: FoldedModel) -> Iterator[tuple[str, Tensor]]:
    for name, layer in model.layers.items():
        yield f"{name}.weight", folded.dense(layer)
    for name, values in model.tensors.items():
        yield name, values.float()


def together(rows: Iterable[Row]) -> list[Row]:
    """One row for the parameters of one kind and type, the number of a block as *."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = re.sub(r"\.\d+\.", ".*.", row.name, count=1), row.kind
        old = found.get(key, Row(*key, 0, 0, 0, 0.0))
        total = old.total + row.total
        square = (old.total * old.distance**2 + row.total * row.distance**2) / total
        found[key] = Row(*key, total, old.kept + row.kept, old.moved + row.moved, square**0.5)
    return list(found.values())


def _row(name: str, kind: str, theirs: Tensor, ours: Tensor, layer: object) -> Row:
    moved = 0
    if isinstance(layer, Quantized):
        nearest = quantize(theirs, layer.scales, layer.zero_points, layer.grid)
        moved = int((nearest != layer.codes).sum())
    kept = int((theirs == ours).sum())
    size = ours.square().mean().sqrt()
    distance = float((theirs - ours).square().mean().sqrt() / size) if float(size) else float(torch.any(theirs != 0))
    return Row(name, kind, ours.numel(), kept, moved, distance)
