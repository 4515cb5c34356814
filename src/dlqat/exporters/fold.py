# SPDX-License-Identifier: Apache-2.0
"""model_dir -> model_dir/folded: the trained adapters become integers, once, for every target.

Folding evaluates the training forward's own function (dlqat.adapter.fold) on the base weights, so the
integers are exactly those that the last training step would have multiplied with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dlqat import adapter, checkpoint, plan, recipe, source
from dlqat.adapter import ADAPTERS, RECORD
from dlqat.checkpoint import FoldedModel, Lazy
from dlqat.folded import Folded, Quantized
from dlqat.plan import Leaf, Node
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal

FOLDED = "folded"


def stale(model_dir: Path) -> bool:
    """Whether model_dir has adapters that are newer than its folded/ (or no folded/ at all)."""
    adapters, folded = model_dir / ADAPTERS, model_dir / FOLDED / RECORD
    return adapters.exists() and (not folded.exists() or folded.stat().st_mtime < adapters.stat().st_mtime)


def fold(model_dir: Path, base: str | None = None, progress: Callable[[str], None] = lambda name: None) -> Path:
    """Write model_dir/folded and return it. `base` names the base model if it has moved since training.

    Refusal if the base is not the one that was trained on, or an adapter is damaged.
    """
    record = _record(model_dir)
    try:
        origin = source.resolve(base or record["source"])
    except Refusal as refusal:
        raise Refusal(f"the base model of {model_dir}: {refusal}; name its new place with --base") from refusal
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
            weight = _need(tensors, f"{path}.weight") if leaves[path].own else weights[f"{name}.weight"]
            return _leaf(path, weight, adapters[path], leaves[path])

        return plan.fold(nodes[name], name, one, lambda path: _need(tensors, path))

    plain = [n for n in weights if n.removesuffix(".weight") not in nodes]
    model = FoldedModel(origin.config, Lazy(list(nodes), layer), Lazy(plain, weights.__getitem__), _all(specs, rules))
    checkpoint.write(model, model_dir / FOLDED, files=model_dir)
    return model_dir / FOLDED


def _leaf(path: str, weight: Tensor, own: adapter.Adapter, leaf: Leaf) -> Quantized:
    expected = (leaf.shape[0], leaf.spec.grid.groups(leaf.shape[1]))
    if tuple(weight.shape) != leaf.shape:
        raise Refusal(f"{path}: the weight has shape {tuple(weight.shape)}, the plan says {leaf.shape}; train again")
    if own.scales.shape != expected:
        raise Refusal(f"{path}: scales have shape {tuple(own.scales.shape)}, the weight needs {expected}; train again")
    if leaf.spec.base_bits:  # what training saw: base_bits needs fixed scales, so these are those of its start
        weight = adapter.fixed_point(weight, own.scales, leaf.spec.grid)
    return adapter.fold(weight, own)


def _need(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise Refusal(f"{name} is missing among the adapters; train again")
    return tensors[name]


def _all(specs: Mapping[str, LayerSpec], rules: recipe.Recipe) -> dict[str, LayerSpec]:
    """The layers' specs and, for a tied model, that of the head (its activations are its own)."""
    head = rules.spec("lm_head")
    return {**specs, "lm_head": head} if head is not None and "lm_head" not in specs else dict(specs)


def _record(model_dir: Path) -> dict[str, Any]:
    path = model_dir / RECORD
    if not path.exists():
        raise Refusal(f"{model_dir} holds no {RECORD}: it is no model_dir of dlqat-train")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refusal(f"{path} is no JSON ({error}); train again") from error
