# SPDX-License-Identifier: Apache-2.0
"""The target "mlx": integers as written, what is refused and why, and what mlx-lm makes of a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import alterations
import artifacts
import models
import unions
from dlqat import artifact as artifact_folders
from dlqat.devices.all import DEVICES
from dlqat.exporters import pipeline
from dlqat.exporters.mlx import config, target
from dlqat.folded import Quantized, disk
from dlqat.grid import Grid
from dlqat.recipe import Recipe, Rule
from dlqat.refusal import Refusal
from dlqat.runtime_tests.check.run import CheckRequest, prove
from toy_tokenizer import toy_tokenizer

MLX = DEVICES["host-mlx"]
runs = pytest.mark.skipif(MLX.available() is not None, reason=str(MLX.available()))
FAMILIES = tuple(f for f in models.FAMILIES if f not in ("mistral", "phi3-long"))  # these are refused, below
OWN: dict[str, dict[str, Any]] = {
    "phi3": {
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.5},
    }
}
"""What mlx-lm computes of a family, where a tiny variant is something else."""
OUTER = Rule(r"model\.embed_tokens|lm_head", {"bits": 8, "group_size": 0, "power_of_two": True})


def recipe(**spec: Any) -> Recipe:
    return Recipe((Rule(r".*_proj", spec), OUTER))


def export(
    folder: Path, family: str = "llama-tied", asked: Recipe | None = None, form: str = "float32", **changes: Any
) -> Path:
    """folder/folded and folder/mlx of a tiny model."""
    folder.mkdir(parents=True, exist_ok=True)
    toy_tokenizer().save_pretrained(folder)
    own = {**OWN.get(family, {}), **changes}
    disk.write(models.fold_model(models.tiny(family, **own), asked), folder / "folded", files=folder)
    found, options = disk.read(folder / "folded"), target.Options(artifacts.CONTEXT, form)
    assert not [row for row in target.plan(found, folder / "folded", options) if row.refused]
    pipeline.write(target, found, folder / "folded", folder / "mlx", options)
    return folder / "mlx"


def wrong(artifact: Path) -> list[str]:
    checks = artifacts.checks(artifact, artifact.parent / "folded", "L0")
    assert len(checks) == 4
    return [f"{c.name}: {c.summary}" for c in checks if c.status == "failed"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_holds_the_integers_of_folded_or_is_refused(tmp_path: Path, family: str) -> None:
    if models.tiny(family).config.model_type not in config.FAMILIES:
        with pytest.raises(Refusal, match=f"target mlx does not know {family}"):
            export(tmp_path, family)
        return
    assert wrong(export(tmp_path, family)) == []


SPECS: dict[str, dict[str, Any]] = {
    "2 bits": {"bits": 2, "group_size": 64},
    "3 bits, not mirrored": {"bits": 3, "group_size": 32, "mirrored": False},
    "4 bits in groups of 64": {"bits": 4, "group_size": 64},
    "4 bits per channel": {"bits": 4, "group_size": 0},
    "5 bits": {"bits": 5, "group_size": 32},
    "5 bits with zero-points": {"bits": 5, "group_size": 32, "symmetric": False},
    "8 bits": {"bits": 8, "group_size": 32},
    "2 bits with zero-points": {"bits": 2, "group_size": 32, "symmetric": False},
    "4 bits with zero-points": {"bits": 4, "group_size": 32, "symmetric": False},
    "8 bits with zero-points": {"bits": 8, "group_size": 32, "symmetric": False},
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_grid_that_fits(tmp_path: Path, spec: dict[str, Any]) -> None:
    assert wrong(export(tmp_path, "llama", recipe(**spec))) == []


def test_mirrored_three_bits_stay_three_bits(tmp_path: Path) -> None:
    """folded/ ships them as int4; groups of -3..4 and of -4..3 are told apart by their biases."""
    model = models.fold_model(models.tiny("llama"), recipe(bits=3, group_size=32, mirrored=False))
    layers = dict(model.layers)
    for name, layer in layers.items():
        if isinstance(layer, Quantized) and "_proj" in name:
            groups = layer.codes.unflatten(1, (-1, 32)).clone()
            groups[:, ::2] *= -1
            layers[name] = replace(layer, grid=Grid(4, 32), codes=groups.flatten(1))
    toy_tokenizer().save_pretrained(tmp_path)
    disk.write(replace(model, layers=layers), tmp_path / "folded", files=tmp_path)
    artifact = artifacts.export_folded(tmp_path, "mlx")
    assert json.loads((artifact / "config.json").read_text())["quantization"]["bits"] == 3
    assert wrong(artifact) == []


def test_layers_of_several_grids(tmp_path: Path) -> None:
    rules = (
        Rule(r".*_proj", {"bits": 4, "group_size": 32}),
        Rule(r".*down_proj", {"bits": 8, "group_size": 64}),
        Rule(r".*v_proj", {"bits": 3, "group_size": 32}),
    )
    artifact = export(tmp_path, "qwen3", Recipe(rules))
    assert wrong(artifact) == []
    stated = json.loads((artifact / "config.json").read_text())["quantization"]
    assert (stated["bits"], stated["group_size"]) == (4, 32)
    assert stated["model.layers.0.mlp.down_proj"] == {"group_size": 64, "bits": 8}
    assert stated["model.embed_tokens"] is False


def test_sixteen_bits_where_nothing_is_rounded(tmp_path: Path) -> None:
    """float16 holds scales and their shifts; gains that it does not hold are refused, and so are zero-points."""
    model = models.fold_model(models.tiny("llama"), recipe(bits=4, group_size=32))
    with pytest.raises(Refusal, match=r"model.*norm.weight: .* would be rounded to float16; use --form float32"):
        target.plan(model, tmp_path, target.Options(64, "float16"))
    for name, values in model.tensors.items():
        model.tensors[name] = values.bfloat16().half().float()  # pyright: ignore[reportIndexIssue]
    assert not [r for r in target.plan(model, tmp_path, target.Options(64, "float16")) if r.refused]
    other = models.fold_model(models.tiny("llama"), recipe(bits=4, group_size=32, symmetric=False))
    for name, values in other.tensors.items():
        other.tensors[name] = values.bfloat16().float()  # pyright: ignore[reportIndexIssue]
    refused = {r.refused for r in target.plan(other, tmp_path, target.Options(64, "bfloat16")) if r.refused}
    assert refused
    assert all("lowest values" in str(r) and "use --form float32" in str(r) for r in refused)
    for spec in ({"bits": 3}, {"bits": 4, "scale_bits": 7}):
        fits = models.fold_model(models.tiny("llama"), recipe(group_size=32, symmetric=False, **spec))
        for name, values in fits.tensors.items():
            fits.tensors[name] = values.bfloat16().half().float()  # pyright: ignore[reportIndexIssue]
        assert not [r for r in target.plan(fits, tmp_path, target.Options(64, "float16")) if r.refused], spec


def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    options = target.Options(64)
    sixteen = models.fold_model(models.tiny("llama"), recipe(bits=4, group_size=16))
    assert any("recipe: group_size = 32" in str(r.refused) for r in target.plan(sixteen, tmp_path, options))
    assert any(
        "one matrix a layer" in str(r.refused) for r in target.plan(unions.fold_model("llama"), tmp_path, options)
    )
    with pytest.raises(Refusal, match="mlx-lm's mistral sees the whole text"):
        target.plan(models.fold_model(models.tiny("mistral")), tmp_path, options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("mlx"), "llama-tied", recipe(bits=4, group_size=32))


@pytest.mark.parametrize("name", alterations.MLX)
def test_an_altered_folder_is_noticed(exported: Path, tmp_path: Path, name: str) -> None:
    assert wrong(exported) == []
    shutil.copytree(exported.parent, tmp_path / "copy")
    artifact = tmp_path / "copy" / "mlx"
    alterations.MLX[name](artifact)
    alterations.fit(artifact)
    assert [w for w in wrong(artifact) if not w.startswith("files")]


@pytest.fixture(scope="module")
def of_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: export(tmp_path_factory.mktemp(family), family, recipe(bits=4, group_size=32)))


def facts_wrong(artifact: Path) -> list[str]:
    """Of the forward; that config.json differs from folded/'s is another check."""
    return [line for line in wrong(artifact) if not line.startswith(("files", "client files"))]


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, edits in alterations.MLX_FAMILY.items() for n in edits])
def test_an_altered_folder_of_a_family_is_noticed(
    of_family: Callable[[str], Path], tmp_path: Path, family: str, name: str
) -> None:
    """In what only this family has."""
    assert wrong(of_family(family)) == []
    shutil.copytree(of_family(family).parent, tmp_path / "copy")
    artifact = tmp_path / "copy" / "mlx"
    alterations.MLX_FAMILY[family][name](artifact)
    alterations.fit(artifact)
    assert facts_wrong(artifact)


UNLIKE: dict[str, tuple[str, dict[str, Any], str]] = {
    "granite, wide heads": ("granite", {"head_dim": 32}, "mlx-lm's granite takes hidden_size / heads"),
    "gemma3, a root between bfloat16 numbers": ("gemma3_text", {"hidden_size": 128}, "by 11.3125, the bfloat16 number"),
    "gemma3, windows everywhere": ("gemma3_text", {"layer_types": ["sliding_attention"] * 2}, "in every Nth layer"),
    "phi3, windows": ("phi3", {}, "mlx-lm's phi3 sees the whole text"),
    "phi3, wide heads": ("phi3", {"head_dim": 32, "sliding_window": None}, "mlx-lm's phi3 takes hidden_size / heads"),
    "phi3, LongRoPE": ("phi3-long", {}, "short ones up to 128 tokens; target gguf has both"),
    "gemma3, biases": ("gemma3_text", {"attention_bias": True}, "mlx-lm's gemma3_text has no biases"),
    "gemma3, a scaled local rope": ("gemma3_text", models.SCALED_LOCAL_ROPE, "rope_type linear of sliding_attention"),
}


@pytest.mark.parametrize(("family", "changes", "says"), UNLIKE.values(), ids=UNLIKE)
def test_what_mlx_lm_has_otherwise_is_refused(family: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=says):
        target.plan(models.fold_model(models.tiny(family, **changes)), tmp_path, target.Options(64))


@runs
@pytest.mark.parametrize(("family", "bits"), [("llama3", 3), ("qwen3", 5)])
def test_mlx_lm_computes_with_them(tmp_path: Path, family: str, bits: int) -> None:
    """Every product and lookup, and the logits, as mlx-lm loads the folder."""
    artifact = export(tmp_path, family, recipe(bits=bits, group_size=32), max_position_embeddings=512)
    report = prove(CheckRequest(artifact_folders.find(artifact), tmp_path / "folded", rungs=("L1", "L2", "L3")))
    open_ones = [c.summary for c in report.checks if c.status != "passed"]
    expected = ("reached an end-of-text token", "mlx computed on this CPU")
    assert [text for text in open_ones if not any(e in text for e in expected)] == []


@runs
@pytest.mark.parametrize("family", ["smollm3", "granite", "gemma3_text", "olmo2", "phi3"])
def test_mlx_lm_computes_what_only_these_families_have(tmp_path: Path, family: str) -> None:
    """Logits, quickly: products are those of the others. Gemma's cache with windows writes texts, too."""
    artifact = export(tmp_path, family, recipe(bits=3, group_size=32), max_position_embeddings=512)
    rungs = ("L2", "L3") if family == "gemma3_text" else ("L2",)
    request = CheckRequest(artifact_folders.find(artifact), tmp_path / "folded", rungs=rungs, quick=True)
    checks = prove(request).checks
    assert [c.summary for c in checks if c.status == "failed"] == []
    assert {c.rung for c in checks if c.status == "passed"} == set(rungs)
