# SPDX-License-Identifier: Apache-2.0
"""Pruned weights in Core ML packages: what is stored sparse, its bytes, its integers, and damage to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coreml_runs
import models
from dlqat import folded
from dlqat.exporters.coreml import package as coreml_package
from dlqat.exporters.coreml import sparse as coreml_sparse
from dlqat.exporters.coreml import target as coreml_target
from dlqat.exporters.coreml import weights as coreml_weights
from dlqat.folded import Quantized
from dlqat.folded.disk import FoldedModel
from dlqat.grid import Grid
from dlqat.mil.program import Constant, Function, Package
from dlqat.recipe import Recipe, Rule
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import integers
from test_coreml_export import reference, run
from test_reader_coreml import WEIGHTS, change_bytes, change_operation, differences

UP = "model.layers.0.mlp.up_proj"
GRIDS: dict[str, dict[str, Any]] = {
    "self_attn.q_proj": {"bits": 4, "group_size": 32},
    "self_attn.k_proj": {"bits": 4, "group_size": 16, "symmetric": False},
    "self_attn.v_proj": {"bits": 3, "group_size": 32},
    "self_attn.o_proj": {"bits": 8, "group_size": 0},
    "mlp.gate_proj": {"bits": 2, "group_size": 32},
    "mlp.up_proj": {"bits": 2, "group_size": 32},
    "mlp.down_proj": {"bits": 4, "group_size": 0},
}
SIGNS, DENSE = ("mlp.up_proj",), ("mlp.gate_proj",)
"""Codes -1, 0, 1 only; 2 bits with all four codes, where a mask costs what the zeros save."""


def pruned(leaf: Quantized, kept: int, *, signs: bool) -> Quantized:
    """`kept` random weights of every 4 neighbours left, the others zero; signs: only codes -1 and 1 are left."""
    generator = torch.Generator().manual_seed(len(leaf.codes))
    chosen = torch.rand(*leaf.codes.shape[:1], leaf.codes.shape[1] // 4, 4, generator=generator).argsort(-1) < kept
    codes = leaf.codes.view(*leaf.scales.shape, -1)
    if leaf.zero_points is None:
        codes = torch.where(codes == 0, 1, codes).to(torch.int8)  # just the pruned ones are zero
    if signs:
        codes = torch.where(codes < 0, -1, 1).to(torch.int8)
    zero = torch.zeros_like(leaf.scales, dtype=torch.int8) if leaf.zero_points is None else leaf.zero_points
    keep = chosen.view(codes.shape)
    return replace(leaf, codes=torch.where(keep, codes, zero[..., None]).view(leaf.codes.shape))


@pytest.fixture(scope="module")
def model() -> FoldedModel:
    """One block, 2:4 pruned on every kind of grid; the embedding as it is."""
    rules = [Rule("model.embed_tokens", {"bits": 8, "group_size": 0})]
    rules += [Rule(f".*{name}", changes) for name, changes in GRIDS.items()]
    made = models.fold_model(models.tiny("llama-tied", num_hidden_layers=1), Recipe(tuple(rules)))
    layers = dict(made.layers)
    for name in GRIDS:
        leaf = layers[at := f"model.layers.0.{name}"]
        assert isinstance(leaf, Quantized)
        layers[at] = pruned(leaf, 2, signs=name in SIGNS)
    return replace(made, layers=layers)


@pytest.fixture(scope="module", params=coreml_package.TARGETS)
def package(model: FoldedModel, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coreml_runs.write(model, tmp_path_factory.mktemp("package"), request.param)


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    shutil.copytree(package, tmp_path / "model.mlpackage")
    return tmp_path / "model.mlpackage"


def target_of(package: Path) -> str:
    return {9: "iOS18"}.get(Package(package).model.specificationVersion, "iOS26")


def blobs(function: Function, name: str) -> dict[str, Any]:
    """Every blob behind the weight of that path, by operation and argument."""
    found: dict[str, Any] = {}
    stack = [f"{name.replace('.', '__')}__weight"]
    while stack:
        operation = function.producer[stack.pop()]
        stack += operation.names()
        for argument, bound in operation.inputs.items():
            found |= {f"{operation.kind} {argument}": b for b in bound if isinstance(b, Constant) and b.blob}
    return found


def test_integers_and_logits(package: Path, model: FoldedModel) -> None:
    """Laws 3 and 4: the very codes, zeros included, and the product of dense()."""
    result = integers.compare(readers.read(package), integers.wanted(model))
    assert result.differences == ()
    assert result.zero_points > 0
    np.testing.assert_allclose(run(package), reference(model), atol=2e-5)


def test_what_is_stored_sparse_and_its_bytes(package: Path, model: FoldedModel) -> None:
    """Sparse where it is smaller: the bytes in the file are those that the choice was made by, within a byte each."""
    function, target = Package(package).function(), target_of(package)
    for name in GRIDS:
        path = f"model.layers.0.{name}"
        leaf, stored = model.layers[path], blobs(function, path)
        assert isinstance(leaf, Quantized)
        sparse = any("mask" in what for what in stored)
        assert sparse == (name not in DENSE) == coreml_sparse.pays(leaf, target)
        kept = int((folded.dense(leaf) != 0).sum())
        bits = coreml_sparse.bits(leaf, kept) if sparse else coreml_weights.bits(leaf, target)
        size = sum(b.blob.size for b in stored.values())
        assert 0 <= size - bits / 8 <= len(stored) + 4 * (target == "iOS26")  # a table of 4 levels for a whole weight
        assert not sparse or size < coreml_weights.bits(leaf, target) / 8
    assert any("lut_to_sparse" in what for what in blobs(function, UP))


def test_the_plan_says_so(model: FoldedModel, tmp_path: Path) -> None:
    rows = coreml_target.plan(model, tmp_path, coreml_target.Options(64, "stateful", deployment_target="iOS18"))
    said = {row.layers.rpartition(".")[2].split()[0]: row.becomes for row in rows}
    assert said["up_proj"] == "sparse: uint1 mask, uint1 lut_to_sparse"
    assert "sparse" not in said["gate_proj"]


def test_a_weight_with_few_zeros_is_stored_in_full() -> None:
    """3 of 4: a mask and int4 codes take as many bits as int4 codes; and not half of it is zero."""
    leaf = models.round_to_nearest(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), Grid(4, 32))
    assert not coreml_sparse.pays(leaf, "iOS18")
    assert not coreml_sparse.pays(pruned(leaf, 3, signs=False), "iOS18")
    assert coreml_sparse.pays(pruned(leaf, 2, signs=False), "iOS18")


@pytest.mark.parametrize("name", [n for n in GRIDS if n not in DENSE])
@pytest.mark.parametrize("what", ["codes", "scales", "zero_points"])
def test_one_bit_is_named(what: str, name: str, copy: Path, model: FoldedModel) -> None:
    path = f"model.layers.0.{name}"
    span = next(w for w in readers.read(copy).weights if w.name == path).spans.get(what)
    if span is None:
        assert what == "zero_points"
        return
    change_bytes(copy / WEIGHTS, lambda content: content.__setitem__(span.offset, content[span.offset] ^ 1))
    found = differences(copy, model)
    assert all(one.startswith(f"{path}: ") for one in found)
    assert any(what.replace("_", "-") in one for one in found)  # the code of a pruned weight is its zero-point


def test_a_mask_with_one_bit_more(copy: Path, model: FoldedModel) -> None:
    mask = next(b for what, b in blobs(Package(copy).function(), UP).items() if "mask" in what).blob
    change_bytes(copy / WEIGHTS, lambda content: content.__setitem__(mask.start, content[mask.start] ^ 1))
    (found,) = differences(copy, model)
    assert found.startswith(f"{UP.replace('.', '__')}__weight: codes differ in number") or UP in found
    assert "ones" in found


def test_a_mask_that_is_moved(copy: Path, model: FoldedModel) -> None:
    """As many ones, elsewhere: the codes stand in other places."""
    mask = next(b for what, b in blobs(Package(copy).function(), UP).items() if "mask" in what).blob

    def turn(content: bytearray) -> None:
        byte = content[mask.start]
        content[mask.start] = (byte << 1 | byte >> 7) & 255

    change_bytes(copy / WEIGHTS, turn)
    (found,) = differences(copy, model)
    assert found.startswith(f"{UP}: ") and "codes differ" in found


def test_signs_of_a_bent_table(copy: Path, model: FoldedModel) -> None:
    table = blobs(Package(copy).function(), UP)["constexpr_blockwise_shift_scale data"].blob
    change_bytes(copy / WEIGHTS, lambda content: content.__setitem__(table.start + 3, 2))
    assert any("is not -1 and 1" in d for d in differences(copy, model))


@pytest.mark.parametrize("change", ["mask", "nonzero_data"])
def test_a_mask_of_another_weight(change: str, copy: Path, model: FoldedModel) -> None:
    other = "model__layers__0__self_attn__q_proj__weight_left_"

    def redirect(message: Any) -> None:
        entry = next(e for e in message.inputs if e.key == change)
        entry.value.arguments[0].name = other + ("0" if change == "mask" else "1")

    change_operation(copy, f"{UP.replace('.', '__')}__weight", redirect)
    assert any("are not those of one operation" in d for d in differences(copy, model))


def test_the_report_says_what_the_zeros_bring(model: FoldedModel, tmp_path: Path, zeros: Callable[[Path], str]) -> None:
    said = zeros(coreml_runs.export(tmp_path, model))
    assert said.startswith("7 weights are half zeros or more; 6 of them stored as a mask")


@pytest.fixture
def zeros() -> Callable[[Path], str]:
    """What the proof of an artifact says of zeros."""
    from dlqat.artifact import find
    from dlqat.devices.all import device
    from dlqat.runtime_tests.check import ladder
    from dlqat.runtime_tests.check.proof import Proof
    from dlqat.runtime_tests.reference.model import Reference

    def fact(folder: Path) -> str:
        artifact = find(folder)
        reference = Reference(folder.parent / "folded")
        proof = Proof(artifact, reference, device(None, artifact.format), 1, quick=True, progress=lambda _: None)
        found = list(ladder.run(proof, ("L0", "L1", "L2")))
        assert [c.name for c in found if c.status != "passed"] == ["Apple hardware"]
        return str(proof.facts["zeros"])

    return fact
