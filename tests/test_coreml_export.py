# SPDX-License-Identifier: Apache-2.0
"""The Core ML target on tiny models: logits of every family, integers of every grid, and the traps of float16."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coreml_runs
import models
import unions
from dlqat import architecture, own_folder
from dlqat.exporters import decoder, pipeline
from dlqat.exporters.coreml import builder
from dlqat.exporters.coreml import package as coreml_package
from dlqat.exporters.coreml import target as coreml_target
from dlqat.exporters.onnx import target as onnx_target
from dlqat.folded import Quantized
from dlqat.folded.disk import FoldedModel
from dlqat.grid import Grid
from dlqat.mil.program import Package
from dlqat.recipe import LayerSpec, Recipe, Rule
from dlqat.refusal import Refusal
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import integers
from torch_builder import TorchBuilder

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 160, 24)]
CHUNKS = (1, 7, 1, 1, 14)


def reference(model: FoldedModel, ids: list[int] = IDS) -> np.ndarray:
    """Logits of the same description, evaluated by plain PyTorch in float32."""
    b = TorchBuilder(architecture.read(model.config), ids, {})
    decoder.forward(b, model)
    return b.logits[0].numpy()


def run(package: Path, precision: str = "float32") -> np.ndarray:
    text, rows, at = coreml_runs.Text(package, precision), [], 0
    for chunk in CHUNKS:
        rows.append(text.step(IDS[at : at + chunk]))
        at += chunk
    return np.concatenate(rows)


GRIDS = {
    "self_attn.q_proj": (2, 32),
    "self_attn.k_proj": (3, 16),
    "self_attn.v_proj": (3, 0),
    "self_attn.o_proj": (4, 32),
    "mlp.gate_proj": (8, 64),
    "mlp.up_proj": (4, 0),
    "mlp.down_proj": (2, 128),
}


def every_grid() -> Recipe:
    """Each linear of a block on a grid of its own, symmetric in block 0, with zero-points in block 1."""
    rules = [Rule("model.embed_tokens|lm_head", {"bits": 8, "group_size": 0})]
    for block, symmetric in enumerate((True, False)):
        for name, (bits, group) in GRIDS.items():
            changes = {"bits": bits, "group_size": group, "symmetric": symmetric}
            rules.append(Rule(f"model.layers.{block}.{name}", changes))
    return Recipe(tuple(rules))


@pytest.mark.parametrize("family", models.FAMILIES)
def test_logits_of_every_family(family: str, tmp_path: Path) -> None:
    """Prefill, decode and prefill again: one pass of PyTorch. float32 differs by the order of additions only."""
    model = models.fold_model(models.tiny(family))
    package, want = coreml_runs.write(model, tmp_path), reference(model)
    np.testing.assert_allclose(run(package), want, atol=2e-5)
    np.testing.assert_allclose(run(package, "float64"), want, atol=2e-5)
    np.testing.assert_allclose(run(package, "float16"), want, atol=2e-2)  # 11 bits of logits around 3
    assert not np.array_equal(run(package, "float16"), run(package))
    assert integers.compare(readers.read(package), integers.wanted(model)).differences == ()


def test_a_residual_beyond_float16_is_held(tmp_path: Path) -> None:
    """Gemma 3 270M's reaches 100,000; norms that read such a sum, and the sum itself, are float32."""
    network = models.tiny("gemma3_text")
    with torch.no_grad():
        for layer in network.model.layers:
            layer.post_feedforward_layernorm.weight.fill_(50000.0)
    model = models.fold_model(network)
    package, want = coreml_runs.write(model, tmp_path), reference(model)
    np.testing.assert_allclose(run(package), want, atol=2e-5)
    np.testing.assert_allclose(run(package, "float16"), want, atol=2e-2)
    assert integers.compare(readers.read(package), integers.wanted(model)).differences == ()


def test_every_kind_of_folded_layer(tmp_path: Path) -> None:
    model = unions.fold_model("llama-biased")
    package = coreml_runs.write(model, tmp_path)
    np.testing.assert_allclose(run(package), reference(model), atol=2e-5)
    result = integers.compare(readers.read(package), integers.wanted(model))
    assert result.differences == ()
    assert result.labels > 0


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model for each deployment target."""
    model = models.fold_model(models.tiny("llama-tied"), every_grid())
    return {t: coreml_runs.write(model, tmp_path_factory.mktemp(t), t) for t in coreml_package.TARGETS}


@pytest.mark.parametrize("target", coreml_package.TARGETS)
def test_integers_of_every_grid(packages: dict[str, Path], target: str) -> None:
    """Codes, scales, zero-points and float parameters, read back from the package, and what they compute."""
    model = models.fold_model(models.tiny("llama-tied"), every_grid())
    result = integers.compare(readers.read(packages[target]), integers.wanted(model))
    assert result.differences == ()
    assert result.zero_points > 0
    np.testing.assert_allclose(run(packages[target]), reference(model), atol=2e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_five_bits_stand_in_bytes(tmp_path: Path, symmetric: bool) -> None:
    asked = Recipe((Rule(".*", {"bits": 5, "group_size": 32, "symmetric": symmetric}),))
    model = models.fold_model(models.tiny("llama"), asked)
    package = coreml_runs.write(model, tmp_path)
    assert integers.compare(readers.read(package), integers.wanted(model)).differences == ()
    np.testing.assert_allclose(run(package), reference(model), atol=2e-5)


def test_true_widths(packages: dict[str, Path]) -> None:
    """A 3-bit weight takes 3 bits a code: one table for all from iOS26. Below there is one per group, and where that
    costs more than the bit that it saves, the codes stand in 4 bits."""
    sizes = {}
    for target, package in packages.items():
        lengths = {w.name: w.spans["codes"].length for w in readers.read(package).weights}
        assert lengths["model.layers.0.self_attn.q_proj"] == 64 * 64 * 2 // 8
        assert lengths["model.layers.0.self_attn.k_proj"] == 32 * 64 * (3 if target == "iOS26" else 4) // 8
        assert lengths["model.layers.0.self_attn.v_proj"] == 32 * 64 * 3 // 8
        assert lengths["model.layers.0.self_attn.o_proj"] == 64 * 64 * 4 // 8
        sizes[target] = (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert sizes["iOS26"] < sizes["iOS18"]


def test_what_cannot_be_held_is_refused(tmp_path: Path) -> None:
    """Before any work, with the layer and the reason."""
    model = models.fold_model(models.tiny("llama-tied"))
    name = "model.layers.0.mlp.up_proj"
    leaf = model.layers[name]
    assert isinstance(leaf, Quantized)
    fine, large = torch.full_like(leaf.scales, 1 + 2**-12), torch.full_like(leaf.scales, 2.0**14)
    for scales, reason in ((fine, "no float16 number"), (large, "exceeds 65504")):
        changed = dataclasses.replace(leaf, scales=scales)
        odd = dataclasses.replace(model, layers={**model.layers, name: changed})
        rows = coreml_target.plan(odd, tmp_path, coreml_target.Options(64, "stateful", deployment_target="iOS18"))
        refused = [r.refused for r in rows if r.refused]
        assert len(refused) == 1
        assert reason in refused[0]
    assert all(
        r.refused is None
        for r in coreml_target.plan(model, tmp_path, coreml_target.Options(64, "stateful", deployment_target="iOS18"))
    )


def test_deployment_targets_are_this_target_s() -> None:
    config = models.tiny("llama-tied").config.to_dict()
    assert pipeline.choose(coreml_target, "coreml", config) == coreml_target.Options(128, "stateful", "iOS18")
    assert (
        pipeline.choose(coreml_target, "coreml", config, 64, {"deployment_target": "iOS26"}).deployment_target
        == "iOS26"
    )
    with pytest.raises(Refusal, match="iOS17 is not known to target coreml; known: iOS18, iOS26"):
        pipeline.choose(coreml_target, "coreml", config, None, {"deployment_target": "iOS17"})
    with pytest.raises(Refusal, match="target onnx; it has no such choice"):
        pipeline.choose(onnx_target, "onnx", config, None, {"deployment_target": "iOS18"})


@pytest.mark.parametrize("eps", [1e-5, 9.999999747378752e-06, 1e-6, 1e-8])
def test_eps_survives_float16(eps: float) -> None:
    root, rest = builder._square_times(eps)
    assert float(root) ** 2 * float(rest) == pytest.approx(eps, rel=2e-6)


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    model = models.fold_model(models.tiny("llama-tied"))
    contents = readers.read(coreml_runs.write(model, tmp_path))
    embedding = next(w for w in contents.weights if w.kind == "gather")
    head = next(w for w in contents.weights if w.name == "lm_head")
    assert embedding.spans == head.spans


def large_activations(package_of: FoldedModel) -> FoldedModel:
    """Activations of 20,000, as SmolLM2 has them: one channel of the embedding, which the norms then see."""
    leaf = package_of.layers["model.embed_tokens"]
    assert isinstance(leaf, Quantized)
    table = leaf.scales * leaf.codes.float()
    table[:, 3] = 20000.0
    table[::2, 5] = -9000.0
    return dataclasses.replace(
        package_of,
        layers={**package_of.layers, "model.embed_tokens": models.round_to_nearest(table, Grid(8, 16))},
    )


def test_norms_do_not_overflow_float16(tmp_path: Path) -> None:
    """Squares of 20,000 are 6,000 times the largest float16; the negative control squares them."""
    model = large_activations(models.fold_model(models.tiny("llama")))
    assert not bool(torch.isfinite(torch.tensor(20000.0).half() ** 2))
    package, want = coreml_runs.write(model, tmp_path), reference(model)
    got = run(package, "float16")
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, want, atol=5e-2)
    np.testing.assert_allclose(run(package), want, atol=1e-4)


def test_norms_of_tiny_and_zero_rows(tmp_path: Path) -> None:
    """eps counts there, and nothing is divided by zero."""
    model = models.fold_model(models.tiny("llama"))
    leaf = model.layers["model.embed_tokens"]
    assert isinstance(leaf, Quantized)
    codes = leaf.codes.clone()
    codes[IDS[0]] = 0
    tiny = dataclasses.replace(leaf, codes=codes, scales=torch.full_like(leaf.scales, 2.0**-14))
    model = dataclasses.replace(model, layers={**model.layers, "model.embed_tokens": tiny})
    package = coreml_runs.write(model, tmp_path)
    np.testing.assert_allclose(run(package), reference(model), atol=5e-5)
    assert np.isfinite(run(package, "float16")).all()


def test_no_state_is_read_twice_at_the_start(tmp_path: Path) -> None:
    """coremltools merges reads of one state, which then is stale: every later read follows a write."""
    package = coreml_runs.write(models.fold_model(models.tiny("llama")), tmp_path)
    for state in ("keyCache", "valueCache"):
        kinds = [o.kind for o in Package(package).function().operations if o.inputs.get("input") == (state,)]
        assert kinds[0] == "read_state"
        assert kinds.count("write_state") == 2
        assert not any(a == b == "read_state" for a, b in itertools.pairwise(kinds))


def test_rotary_tables_are_those_of_the_reference(tmp_path: Path) -> None:
    """Stored in float32, bit for bit what transformers computes; rounded after the lookup."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    network = models.tiny("llama3")
    contents = readers.read(coreml_runs.write(models.fold_model(network), tmp_path))
    rotary = LlamaRotaryEmbedding(network.config)
    cos, sin = rotary(torch.zeros(1), torch.arange(coreml_runs.CONTEXT)[None])
    half = cos.shape[-1] // 2
    # float32 sin and cos of two libraries: the last bit
    tables = {fact.kind: fact.value for fact in contents.facts}
    np.testing.assert_allclose(tables["rope.cos"], cos[0, :, :half], atol=2e-7)
    np.testing.assert_allclose(tables["rope.sin"], sin[0, :, :half], atol=2e-7)


def test_the_mask_s_values_do_not_count(tmp_path: Path) -> None:
    """swift-transformers sends zeros in prefill, which would let tokens see the future; only the length is read."""
    package = coreml_runs.write(models.fold_model(models.tiny("llama")), tmp_path)
    zeros, odd = (coreml_runs.Text(package).step(IDS, np.full((1, 1, 1, len(IDS) + 1), v, np.float16)) for v in (0, -7))
    np.testing.assert_array_equal(zeros, odd)
    changed = coreml_runs.Text(package).step([*IDS[:-1], (IDS[-1] + 1) % 160])
    np.testing.assert_allclose(zeros[:-1], changed[:-1], atol=1e-6)  # the past does not see the last token
    assert not np.allclose(zeros[-1], changed[-1])


def test_what_apps_read(tmp_path: Path) -> None:
    """Names, shapes and metadata that swift-transformers asks for; token ids; files beside the package."""
    folder = coreml_runs.export(tmp_path, models.fold_model(models.tiny("llama-tied")))
    spec = Package(folder / "model.mlpackage").model
    description, function = spec.description, Package(folder / "model.mlpackage").function()
    assert spec.specificationVersion == 9
    assert list(function.inputs) == ["inputIds", "causalMask", "keyCache", "valueCache"]
    assert function.outputs == ("logits",)
    assert [s.name for s in description.state] == ["keyCache", "valueCache"]
    lengths = {i.name: i.type.multiArrayType.shapeRange.sizeRanges[-1] for i in description.input}
    assert (lengths["inputIds"].lowerBound, lengths["inputIds"].upperBound) == (1, 128)
    assert (lengths["causalMask"].lowerBound, lengths["causalMask"].upperBound) == (2, 129)
    assert description.metadata.author
    assert description.metadata.license
    assert description.metadata.shortDescription
    metadata = Package(folder / "model.mlpackage").metadata
    assert metadata["co.huggingface.exporters.name"]
    assert metadata["dlqat.eos_token_id"] == "2"
    names = {p.name for p in folder.iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "config.json", "golden.npz", "check_on_mac.py"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"] == "model.mlpackage"
    assert "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin" in manifest["files"]
    assert "not verified" in manifest["apple_hardware"]


def test_what_coremltools_writes_on_the_way_goes_with_the_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed export leaves its draft, which the next one sweeps, and nothing elsewhere; a finished one, neither."""
    save, before, seen = coreml_package.save, tempfile.tempdir, list[Path]()

    def watched(made: Any, *rest: Any) -> None:
        seen.extend((Path(made.package_path), Path(tempfile.gettempdir())))
        save(made, *rest)

    monkeypatch.setattr(coreml_package, "save", watched)
    folder = coreml_runs.export(tmp_path, models.fold_model(models.tiny("llama-tied")))
    assert all(tmp_path / ".coreml.dlqat-draft" in path.parents for path in seen), seen
    assert tempfile.tempdir == before
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    own = {"manifest.json", own_folder.MARKER}
    assert files == own | {*json.loads((folder / "manifest.json").read_text())["files"]}
    assert not [p for p in folder.iterdir() if p.is_dir() and p.name != "model.mlpackage"]


def test_float_layers_stay_exact(tmp_path: Path) -> None:
    """No rule matches: float32 numbers that float16 does not have are kept and computed in float32."""
    model = models.fold_model(models.tiny("llama-biased", num_hidden_layers=1), Recipe((Rule("lm_head", {}),)))
    assert set(model.layers) == {"lm_head"}
    assert model.specs["lm_head"] == LayerSpec()
    package = coreml_runs.write(model, tmp_path)
    assert integers.compare(readers.read(package), integers.wanted(model)).differences == ()
    np.testing.assert_allclose(run(package), reference(model), atol=2e-5)
