# SPDX-License-Identifier: Apache-2.0
"""model_dir -> model_dir/folded: the trained adapters become integers, once, for every target.

Folding evaluates the training forward's own function (dlqat.adapter.fold) on the base weights, so the
integers are exactly those that the last training step would have multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dlqat import adapter, atomic, folder_lock, json_file, plan, recipe, source, tree
from dlqat.adapter import need
from dlqat.architecture import EMBEDDING, HEAD, Config
from dlqat.folded import Folded, Quantized, disk
from dlqat.folded.disk import FoldedModel, Lazy
from dlqat.model_dir import ADAPTERS, RECORD
from dlqat.plan import Leaf, Node
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal
from dlqat.source import Source

FOLDED = "folded"


def stale(model_dir: Path) -> bool:
    """Whether model_dir has adapters that its folded/ was not made from (or no folded/ at all).

    By content: a copy may keep times or change them, and folded/ of other adapters would pass every check."""
    adapters, record = model_dir / ADAPTERS, model_dir / FOLDED / RECORD
    if not adapters.is_file():
        return False
    try:
        made_from = json_file.read(record).get("adapters")
    except Refusal:
        return True
    return made_from != atomic.sha256(adapters)


def fold(model_dir: Path, base: str | None = None, progress: Callable[[str], None] = lambda name: None) -> Path:
    """Write model_dir/folded and return it. `base` names the base model if it has moved since training.

    Refusal if the base is not the one that was trained on, or an adapter is damaged.
    """
    with folder_lock.reading(model_dir):
        model = opened(model_dir, base, progress)
        disk.write(model, model_dir / FOLDED, files=model_dir, adapters=atomic.sha256(model_dir / ADAPTERS))
    return model_dir / FOLDED


def opened(
    model_dir: Path, base: str | None = None, progress: Callable[[str], None] = lambda name: None
) -> FoldedModel:
    """What `fold` would write, layer by layer as they are asked for; nothing is written."""
    record = _record(model_dir)
    origin = _origin(model_dir, record, base)
    if source.fingerprint(origin) != record["fingerprint"]:
        raise Refusal(f"{origin.text} is not the model that {model_dir} was trained on; name that one with --base")
    rules = recipe.parse(record["recipe"], f"{model_dir / RECORD}")
    weights = source.weights(origin)
    shapes = {n.removesuffix(".weight"): tuple(weights[n].shape) for n in weights if n.endswith(".weight")}
    matrices = {n: (s[0], s[1]) for n, s in shapes.items() if len(s) == 2}
    nodes: dict[str, Node] = {
        **rules.layers(matrices),
        **(plan.read(model_dir) if (model_dir / plan.FILE).exists() else {}),
    }
    leaves = {x.path: x for name, node in nodes.items() for x in plan.leaves(node, name, matrices[name])}
    specs = {path: leaf.spec for path, leaf in leaves.items()}
    tensors = adapter.load(model_dir / ADAPTERS)
    adapters = adapter.read(model_dir / ADAPTERS, {p: (s.grid, s.scaling) for p, s in specs.items()}, tensors)

    def layer(name: str) -> Folded:
        progress(name)

        def one(path: str) -> Quantized:
            weight = need(tensors, f"{path}.weight") if leaves[path].own else weights[f"{name}.weight"]
            return _leaf(path, weight, adapters[path], leaves[path])

        return tree.mapped(nodes[name], name, one, lambda path: need(tensors, path))

    plain = [n for n in weights if n.removesuffix(".weight") not in nodes]
    return FoldedModel(origin.config, Lazy(list(nodes), layer), Lazy(plain, weights.__getitem__), _all(specs, rules))


def config(model_dir: Path, base: str | None = None) -> Config:
    """That of the folded model, for which nothing has to be folded."""
    return _origin(model_dir, _record(model_dir), base).config


def _origin(model_dir: Path, record: Mapping[str, Any], base: str | None) -> Source:
    try:
        return source.again(json_file.convert(record, source.Record, str(model_dir / RECORD)), base)
    except Refusal as refusal:
        raise Refusal(f"the base model of {model_dir}: {refusal}; name its new place with --base") from refusal


def _leaf(path: str, weight: Tensor, own: adapter.Adapter, leaf: Leaf) -> Quantized:
    if tuple(weight.shape) != leaf.shape:
        raise Refusal(f"{path}: the weight has shape {tuple(weight.shape)}, the plan says {leaf.shape}; train again")
    for field, shape in _trained(path, leaf).items():
        tensor: Tensor | None = getattr(own, field)
        if tensor is None:
            raise Refusal(f"{path}.{field} is missing among the adapters; train again")
        if tuple(tensor.shape) != shape:
            raise Refusal(f"{path}.{field} has shape {tuple(tensor.shape)}, the weight needs {shape}; train again")
    if own.offset is not None and tuple(own.offset.shape) != leaf.shape:
        raise Refusal(f"{path}.offset has shape {tuple(own.offset.shape)}, the weight {leaf.shape}; train again")
    if leaf.spec.base_bits:  # what training saw: base_bits needs fixed scales, so these are those of its start
        weight = adapter.fixed_point(weight, own.scales, leaf.spec.grid)
    return adapter.fold(weight, own)


def _trained(path: str, leaf: Leaf) -> dict[str, tuple[int, int]]:
    """What training has written of a leaf, and its shape. Without one of these it would fold into other integers."""
    (out, inputs), spec = leaf.shape, leaf.spec
    groups = out, spec.grid.groups(inputs)
    found = {"scales": groups} | ({"mask": leaf.shape} if leaf.pruned else {})
    if path == EMBEDDING:  # rounded, and nothing in it trained, whatever its spec says
        return found
    lora = {"lora_a": (spec.rank, inputs), "lora_b": (out, spec.rank)} if spec.rank else {}
    return found | lora | ({"magnitude": groups} if spec.magnitude else {})


def _all(specs: Mapping[str, LayerSpec], rules: recipe.Recipe) -> dict[str, LayerSpec]:
    """The layers' specs and, for a tied model, that of the head (its activations are its own)."""
    head = rules.spec(HEAD)
    return {**specs, HEAD: head} if head is not None and HEAD not in specs else dict(specs)


class Record(source.Record, frozen=True, kw_only=True):
    """What fold reads of dlqat-train's record."""

    recipe: list[dict[str, Any]]


def _record(model_dir: Path) -> dict[str, Any]:
    path = model_dir / RECORD
    if not path.exists():
        raise Refusal(f"{model_dir} holds no {RECORD}: it is not a model_dir of dlqat-train")
    found = json_file.read(path, "; train again")
    json_file.convert(found, Record, f"{path} is not a record of dlqat-train")
    return found
