# SPDX-License-Identifier: Apache-2.0
"""The methods' unions on the real SmolLM2-135M: three blocks of it, the others rounded to nearest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import artifacts
from dlqat import adapter, folded, plan, source, tree
from dlqat.exporters import pipeline
from dlqat.folded import Folded, LowRank, Quantized, Sum, disk
from dlqat.recipe import LayerSpec
from dlqat.trainer.starts import by_name

SPEC = LayerSpec(4, 32, rank=0, magnitude=False)
BLOCKS = {0: ("casp", "keep=0.25"), 14: ("nm", "low_rank=0.1"), 29: ("swsc", "rounding=gptq")}


def made(model: Path, block: int, name: str, setting: str) -> dict[str, Folded]:
    """The linears of one block by a method, calibrated on noise: parity asks for integers, not for quality."""
    origin = source.resolve(str(model))
    weights, every = source.weights(origin), origin.decoder.linears()
    shapes = {n: s for n, s in every.items() if n.startswith(f"model.layers.{block}.self_attn")}
    method = by_name.value(name, [setting])
    nodes = method.plan(dict.fromkeys(shapes, SPEC), shapes, [1.0] * origin.decoder.layers)
    layers: dict[str, Folded] = {}
    for path, node in nodes.items():
        weight = weights[f"{path}.weight"].float()
        x = torch.randn(600, weight.shape[1], generator=torch.Generator().manual_seed(0))
        tensors = method.make(path, node, weight, x.T @ x)
        leaves = {leaf.path: leaf for leaf in plan.leaves(node, path, shapes[path])}

        def one(at: str, weight=weight, tensors=tensors, leaves=leaves) -> Quantized:
            fields = {k: tensors.get(f"{at}.{k}") for k in ("offset", "mask")}
            base = tensors[f"{at}.weight"] if leaves[at].own else weight
            own = adapter.Adapter(leaves[at].spec.grid, tensors[f"{at}.scales"], **fields)
            return adapter.fold(base, own)

        layers[path] = tree.mapped(node, path, one, tensors.__getitem__)
    return layers


@pytest.fixture(scope="module")
def model(smollm2: Path, smollm2_folded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folded/ with one block's attention by each method."""
    path = tmp_path_factory.mktemp("methods") / "folded"
    plain = disk.read(smollm2_folded)
    changed = {n: x for block, how in BLOCKS.items() for n, x in made(smollm2, block, *how).items()}
    assert {type(x) for x in changed.values()} == {LowRank, Sum, Quantized}
    layers = {n: changed.get(n) or plain.layers[n] for n in plain.layers}
    disk.write(replace(plain, layers=layers), path, files=smollm2_folded)
    back = disk.read(path)
    assert all(torch.equal(folded.dense(back.layers[n]), folded.dense(x)) for n, x in changed.items())
    return path


@pytest.mark.real
@pytest.mark.parametrize(
    "target", ["onnx", "coreml"]
)  # executorch: on tiny models, test_methods_targets.py; a minute here
def test_every_kind_of_union_on_the_real_model(target: str, model: Path, tmp_path: Path) -> None:
    module, back = pipeline.load(target), disk.read(model)
    pipeline.write(module, back, model, tmp_path / target, pipeline.choose(module, target, back.config, 256))
    proof = artifacts.proof(tmp_path / target, model, quick=True)
    found = list(artifacts.ladder.run(proof, ("L0", "L2")))
    assert [str(c) for c in found if c.status != "passed" and c.name != "Apple hardware"] == []
    masked = [w.name for w in proof.contents.weights if "mask" in w.stored]
    assert masked == ([f"model.layers.14.self_attn.{x}_proj.0" for x in "qkvo"] if target == "coreml" else [])
