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

from dlqat import adapter, checkpoint, recipe, source
from dlqat.checkpoint import FoldedModel, Lazy
from dlqat.folded import Folded
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal

FOLDED = "folded"
ADAPTERS = "adapters.safetensors"
RECORD = "dlqat.json"


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
    specs = rules.layers({n: (s[0], s[1]) for n, s in shapes.items() if len(s) == 2})
    adapters = adapter.read(model_dir / ADAPTERS, {n: (s.grid, s.scaling) for n, s in specs.items()})

    def layer(name: str) -> Folded:
        progress(name)
        return _layer(name, weights, adapters[name], specs[name])

    plain = [n for n in weights if n.removesuffix(".weight") not in specs]
    model = FoldedModel(origin.config, Lazy(list(specs), layer), Lazy(plain, weights.__getitem__), _all(specs, rules))
    checkpoint.write(model, model_dir / FOLDED, files=model_dir)
    return model_dir / FOLDED


def _layer(name: str, weights: Mapping[str, Tensor], own: adapter.Adapter, spec: LayerSpec) -> Folded:
    weight = weights[f"{name}.weight"]
    expected = (weight.shape[0], spec.grid.groups(weight.shape[1]))
    if own.scales.shape != expected:
        raise Refusal(f"{name}: scales have shape {tuple(own.scales.shape)}, the weight needs {expected}; train again")
    if spec.base_bits:  # what training saw: base_bits needs fixed scales, so these are those of its start
        weight = adapter.fixed_point(weight, own.scales, spec.grid)
    return adapter.fold(weight, own)


def _all(specs: Mapping[str, LayerSpec], rules: recipe.Recipe) -> dict[str, LayerSpec]:
    """The layers' specs and, for a tied model, that of the head (its activations are its own)."""
    head = rules.spec("lm_head")
    return {**specs, "lm_head": head} if head is not None and "lm_head" not in specs else dict(specs)


def _record(model_dir: Path) -> dict[str, Any]:
    path = model_dir / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Refusal(f"{model_dir} holds no {RECORD}: it is no model_dir of dlqat-train") from error
    except ValueError as error:
        raise Refusal(f"{path} is no JSON ({error}); train again") from error
