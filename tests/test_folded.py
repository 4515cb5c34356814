# SPDX-License-Identifier: Apache-2.0
"""Laws of folded/: what is written comes back, transformers reads the same model, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dlqat import architecture, folded
from dlqat.folded import Clustered, Folded, LowRank, Quantized, Sum, dense, disk
from dlqat.grid import Grid
from dlqat.recipe import BLOCKS, EMBEDDINGS, Recipe, Rule
from dlqat.refusal import Refusal
from models import FAMILIES, fold_model, round_to_nearest, tiny, write_folded


def mixed(symmetric: bool) -> Recipe:
    """Every bit width in one model, some per channel."""
    return Recipe(
        (
            Rule(BLOCKS, {"bits": 4, "group_size": 32, "symmetric": symmetric}),
            Rule(r".*mlp\..*", {"bits": 3, "group_size": 16}),
            Rule(r".*v_proj", {"bits": 2, "group_size": 64}),
            Rule(r".*down_proj", {"bits": 8, "group_size": 0}),
            Rule(EMBEDDINGS, {"bits": 8, "group_size": 0, "power_of_two": True}),
        )
    )


def same(a: Folded, b: Folded) -> bool:
    """Bitwise equality of two folded layers of one structure."""
    pairs = list(zip(folded.leaves(a), folded.leaves(b), strict=True))
    leaves = all(
        x.grid == y.grid
        and torch.equal(x.codes, y.codes)
        and torch.equal(x.scales, y.scales)
        and (y.zero_points is None if x.zero_points is None else torch.equal(x.zero_points, y.zero_points))  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess, reportUnknownMemberType]
        for (_, x), (_, y) in pairs
    )
    labels = zip(folded.labels(a), folded.labels(b), strict=True)
    return leaves and torch.equal(dense(a), dense(b)) and all(torch.equal(x, y) for (_, x), (_, y) in labels)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_gives_what_was_written(tmp_path: Path, family: str, symmetric: bool) -> None:
    model = write_folded(tmp_path / "folded", family, mixed(symmetric))
    back = disk.read(tmp_path / "folded")
    assert list(back.layers) == list(model.layers) and set(back.tensors) == set(model.tensors)
    assert all(same(back.layers[n], model.layers[n]) for n in model.layers)
    assert all(torch.equal(back.tensors[n], model.tensors[n]) for n in model.tensors)
    assert dict(back.specs) == dict(model.specs)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_dense_bit_for_bit(tmp_path: Path, family: str, symmetric: bool) -> None:
    """Law 3, by code that is none of ours."""
    model = write_folded(tmp_path / "folded", family, mixed(symmetric))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    loaded(torch.tensor([[1, 2, 3]]))  # compressed-tensors may decompress on the first forward
    for name, layer in model.layers.items():
        assert torch.equal(loaded.get_submodule(name).weight, dense(layer)), name
    by_hand = tiny(family)
    for name, layer in model.layers.items():
        by_hand.get_submodule(name).weight.data.copy_(dense(layer))
    ids = torch.randint(0, 160, (2, 17))
    assert torch.equal(loaded(ids).logits, by_hand(ids).logits)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama3", {}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}),
    ],
    ids=["llama3", "default", "linear"],
)
def test_rotary_positions_stand_in_the_keys_of_transformers_4_too(
    tmp_path: Path, family: str, changes: dict[str, object]
) -> None:
    """4.57 reads rope_theta and rope_scaling alone; 5 makes the same of them and of rope_parameters."""
    write_folded(tmp_path / "folded", family, **changes)
    path = tmp_path / "folded" / "config.json"
    written, wanted = json.loads(path.read_text()), tiny(family, **changes).config.rope_parameters
    assert written["rope_theta"] == wanted["rope_theta"]
    assert written.get("rope_scaling", {"rope_type": "default"}) == {
        k: v for k, v in wanted.items() if k != "rope_theta"
    }
    for left_out in ((), ("rope_theta", "rope_scaling"), ("rope_parameters",)):
        path.write_text(json.dumps({k: v for k, v in written.items() if k not in left_out}))
        assert AutoConfig.from_pretrained(path.parent).rope_parameters == wanted, left_out


def test_longrope_stands_in_the_keys_of_transformers_4_where_those_can_say_it(tmp_path: Path) -> None:
    """Its Phi 3 takes three keys, and makes the factor of cos and sin of the lengths; 5 takes those three for all that there is."""
    path, rope = tmp_path / "folded" / "config.json", tiny("phi3-long").config.rope_parameters
    for own in ({}, {"attention_factor": 1.5}, {"factor": 2.0}):
        write_folded(tmp_path / "folded", "phi3-long", rope_parameters={**rope, **own})
        written = json.loads(path.read_text())
        keys = set() if own else {"type", "short_factor", "long_factor"}
        assert (set(written.get("rope_scaling", {})), written["partial_rotary_factor"]) == (keys, 0.5)
        loaded = architecture.read(AutoConfig.from_pretrained(path.parent).to_dict())
        wanted = architecture.read(tiny("phi3-long", rope_parameters={**rope, **own}).config.to_dict())
        for a, b in zip(loaded.rope_tables(9), wanted.rope_tables(9), strict=True):
            assert np.array_equal(a, b)


def union() -> dict[str, Folded]:
    """One of each kind of layer, nested."""
    grid = Grid(4, 16)
    base = round_to_nearest(torch.randn(64, 64), grid)
    low = LowRank(round_to_nearest(torch.randn(64, 16), grid), round_to_nearest(torch.randn(16, 64), grid))
    clustered = Clustered(round_to_nearest(torch.randn(8, 64), grid), torch.randint(0, 8, (64,), dtype=torch.int32))
    return {"base": base, "low": low, "clustered": clustered, "sum": Sum((clustered, low))}


def test_every_kind_of_layer_comes_back_and_stands_dense_for_transformers(tmp_path: Path) -> None:
    model = fold_model(tiny("llama"))
    name = "model.layers.0.self_attn.q_proj"
    for kind, layer in union().items():
        layers = {**model.layers, name: layer}
        changed = disk.FoldedModel(model.config, layers, model.tensors, model.specs)
        disk.write(changed, tmp_path / kind, files=tmp_path)
        assert same(disk.read(tmp_path / kind).layers[name], layer), kind
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        loaded(torch.tensor([[1]]))
        assert torch.equal(loaded.get_submodule(name).weight, dense(layer)), kind


def test_dense_is_what_the_parts_mean() -> None:
    parts = union()
    low, clustered = parts["low"], parts["clustered"]
    assert isinstance(low, LowRank) and isinstance(clustered, Clustered)
    x = torch.randn(64, dtype=torch.float64)
    y = dense(low.left).double() @ (dense(low.right).double() @ x)
    y = y + (dense(clustered.centroids).double() @ x)[clustered.labels.long()]
    # float32 products of rank 16 against float64
    torch.testing.assert_close(dense(parts["sum"]).double() @ x, y, rtol=1e-5, atol=1e-4)
    assert all(folded.shape(layer) == (64, 64) for layer in parts.values())


def _edit(folder: Path, file: str, name: str, change: object) -> None:
    tensors = load_file(folder / file)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess, reportUnknownMemberType]
    save_file(tensors, folder / file, metadata={"format": "pt"})


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


Q = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("file", "name", "change", "says"),
    [
        ("model.safetensors", f"{Q}.weight_scale", None, "missing"),
        ("model.safetensors", f"{Q}.weight_packed", lambda t: t[:-1], "shape"),
        ("model.safetensors", f"{Q}.weight_scale", lambda t: t[:, :-1], "shape"),
        ("model.safetensors", f"{Q}.weight_scale", _nan, "NaN"),
        ("model.safetensors", f"{Q}.weight_scale", lambda t: -t, "not positive"),
        ("model.safetensors", "model.norm.weight", _nan, "NaN"),
        ("integers.safetensors", "model.embed_tokens.weight_scale", None, "missing"),
    ],
)
def test_damage_is_refused_by_name(tmp_path: Path, file: str, name: str, change: object, says: str) -> None:
    write_folded(tmp_path / "folded")
    _edit(tmp_path / "folded", file, name, change)
    with pytest.raises(Refusal, match=says) as refusal:
        model = disk.read(tmp_path / "folded")
        for layer in model.layers:
            _ = model.layers[layer]
        for tensor in model.tensors:
            _ = model.tensors[tensor]
    assert name.rpartition(".")[0] in str(refusal.value)


def test_a_truncated_file_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    write_folded(tmp_path / "folded")
    path = tmp_path / "folded" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Refusal, match=r"model\.safetensors is damaged"):
        disk.read(tmp_path / "folded")
    with pytest.raises(Refusal, match="does not exist"):
        disk.read(tmp_path)
    record = tmp_path / "folded" / "dlqat.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "format": 99}))
    with pytest.raises(Refusal, match="format 99"):
        disk.read(tmp_path / "folded")


@pytest.mark.parametrize("name", ["dlqat.json", "config.json"])
def test_what_is_no_object_is_refused(tmp_path: Path, name: str) -> None:
    write_folded(tmp_path / "folded")
    (tmp_path / "folded" / name).write_text("[]")
    with pytest.raises(Refusal, match=f"{name} is not a JSON object"):
        disk.read(tmp_path / "folded")


def test_a_layer_off_its_grid_is_not_written(tmp_path: Path) -> None:
    model = fold_model(tiny())
    name, layer = next((n, x) for n, x in model.layers.items() if n.endswith("q_proj"))
    assert isinstance(layer, Quantized)
    wild = Quantized(layer.grid, torch.full_like(layer.codes, 9), layer.scales)
    changed = disk.FoldedModel(model.config, {**model.layers, name: wild}, model.tensors, model.specs)
    with pytest.raises(Refusal, match="outside"):
        disk.write(changed, tmp_path / "folded", files=tmp_path)
    assert list(tmp_path.iterdir()) == []
