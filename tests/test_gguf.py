# SPDX-License-Identifier: Apache-2.0
"""The target "gguf": integers as written, what is refused and why, and what llama.cpp makes of a file."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import alterations
import artifacts
import models
import unions
from dlqat import architecture, folded, source
from dlqat import artifact as artifact_folders
from dlqat.devices.all import DEVICES
from dlqat.exporters import asked, pipeline
from dlqat.exporters.gguf import metadata, names, target, vocabulary
from dlqat.exporters.tokens import SpecialTokens
from dlqat.folded import disk
from dlqat.grid import Grid, quantize
from dlqat.recipe import Recipe, Rule
from dlqat.refusal import Refusal
from dlqat.runtime_tests.check.run import CheckRequest, prove
from dlqat.runtime_tests.reference import arithmetic
from dlqat.source import pretrained
from dlqat.trainer.layers.prepare import nearest
from toy_tokenizer import byte_tokenizer, qwen_tokenizer, sentencepiece_tokenizer

VOCABULARY = 328
LLAMACPP = DEVICES["host-llamacpp"]
runs = pytest.mark.skipif(LLAMACPP.available() is not None, reason=str(LLAMACPP.available()))
SPECIAL = SpecialTokens((2,), 2, 1)


def recipe(**spec: Any) -> Recipe:
    outer = {"bits": 8, "group_size": 0, "power_of_two": True}
    return Recipe((Rule(r".*_proj", spec), Rule(r"model\.embed_tokens|lm_head", outer)))


def export(folder: Path, family: str = "llama-tied", asked: Recipe | None = None, **changes: Any) -> Path:
    """folder/folded and folder/gguf of a tiny model with a byte-level tokenizer."""
    own: dict[str, Any] = {"max_position_embeddings": 8} if family in ("mistral", "ministral", "cwm", "phi3") else {}
    model = models.tiny(family, vocab_size=VOCABULARY, **{**own, **models.RELEASED.get(family, {}), **changes})
    return artifacts.export_model(folder, "gguf", models.fold_model(model, asked), byte_tokenizer())


def wrong(artifact: Path) -> list[str]:
    checks = artifacts.checks(artifact, artifact.parent / "folded", "L0")
    assert len(checks) == 4
    return [f"{c.name}: {c.summary}" for c in checks if c.status == "failed"]


@pytest.mark.parametrize("family", [family for family in models.FAMILIES if family != "ministral3"])
def test_every_family_holds_the_integers_of_folded(tmp_path: Path, family: str) -> None:
    assert wrong(export(tmp_path, family)) == []


SPECS: dict[str, dict[str, Any]] = {
    "2 bits": {"bits": 2, "group_size": 64},
    "3 bits, mirrored": {"bits": 3, "group_size": 32},
    "4 bits in groups of 64": {"bits": 4, "group_size": 64},
    "4 bits per channel": {"bits": 4, "group_size": 0},
    "5 bits": {"bits": 5, "group_size": 32},
    "5 bits per channel": {"bits": 5, "group_size": 0},
    "8 bits": {"bits": 8, "group_size": 32},
    "2 bits with zero-points": {"bits": 2, "group_size": 32, "symmetric": False},
    "3 bits with zero-points": {"bits": 3, "group_size": 32, "symmetric": False},
    "4 bits with zero-points and scales of 7 bits": {"bits": 4, "group_size": 32, "symmetric": False, "scale_bits": 7},
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_grid_that_fits(tmp_path: Path, spec: dict[str, Any]) -> None:
    assert wrong(export(tmp_path, "llama", recipe(**spec))) == []


@pytest.mark.parametrize("group_size", [64, 128, 0])
def test_two_bits_in_two_bits(tmp_path: Path, group_size: int) -> None:
    """Held as folded/ has them, and read back for training as these integers."""
    model = models.tiny("llama", vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256)
    folded_model = models.fold_model(model, recipe(bits=2, group_size=group_size))
    artifact = artifacts.export_model(tmp_path, "q2_0", folded_model, byte_tokenizer())
    assert wrong(artifact) == []
    name = "model.layers.0.mlp.down_proj"
    row = (artifact / "model.gguf").stat().st_size
    wide = artifacts.export_model(tmp_path / "wide", "gguf", folded_model, byte_tokenizer()) / "model.gguf"
    assert row < wide.stat().st_size
    loaded = source.resolve(str(artifact / "model.gguf")).stored.tensor(f"{name}.weight")
    assert torch.equal(loaded, folded.dense(folded_model.layers[name]))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of form q2_0."""
    model = models.tiny("llama", vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256)
    folded_model = models.fold_model(model, recipe(bits=2, group_size=64))
    return artifacts.export_model(tmp_path_factory.mktemp("narrow"), "q2_0", folded_model, byte_tokenizer())


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("talk", ["hello"]),
        ("talk", []),
        ("runtime_tests.eval_cli", ["--text", "text.txt"]),
        ("runtime_tests.cli", []),
    ],
    ids=["run", "chat", "eval", "check"],
)
def test_a_llamacpp_before_q2_0_is_not_asked(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    module: str, words: list[str],
) -> None:  # fmt: skip
    """Every command that runs an artifact says so in one line, before it loads anything; the device is there."""
    monkeypatch.setenv("DLQAT_DEVICES", str(tmp_path))
    ready = DEVICES["host-llamacpp"].release.folder / "ready"
    ready.parent.mkdir(parents=True)
    ready.touch()
    monkeypatch.setattr(sys, "argv", ["dlqat", str(narrow), *words, "--device", "host-llamacpp"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"dlqat.{module}").main()
    said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert said[-1] == (
        "error: device host-llamacpp cannot run here: its llama.cpp is older than Q2_0; --device node-llamacpp has it"
    )


def test_what_would_not_be_smaller_as_q2_0_is_refused(tmp_path: Path) -> None:
    model = models.fold_model(models.tiny("llama", vocab_size=VOCABULARY), recipe(bits=2, group_size=32))
    with pytest.raises(Refusal, match=r"^--form q2_0 holds symmetric 2 bits in groups of 64, 128 or whole rows"):
        target.plan(model, tmp_path, target.Options(64, "q2_0"))


def test_linears_that_stay_float(tmp_path: Path) -> None:
    asked = Recipe((Rule(r".*(gate|q)_proj", {"bits": 4}),))
    assert wrong(export(tmp_path, "llama-tied", asked)) == []


def test_another_reader_sees_the_same_weights(tmp_path: Path) -> None:
    """gguf-py, which is bit-exact with llama.cpp, and the order of rows by llama.cpp's own converter."""
    artifact = export(tmp_path, "llama")
    model = disk.read(tmp_path / "folded")
    stored = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(artifact / "model.gguf").tensors}
    for ours, theirs in (("mlp.up_proj", "ffn_up"), ("self_attn.v_proj", "attn_v")):
        assert np.array_equal(stored[f"blk.1.{theirs}.weight"], folded.dense(model.layers[f"model.layers.1.{ours}"]))
    q = folded.dense(model.layers["model.layers.1.self_attn.q_proj"]).numpy()
    permuted = q.reshape(4, 2, q.shape[0] // 4 // 2, -1).swapaxes(1, 2).reshape(q.shape)  # LlamaModel.permute
    assert np.array_equal(stored["blk.1.attn_q.weight"], permuted)


AGAIN = (
    "llama-biased",
    "llama-tied",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "granite",
    "gemma3_text",
    "olmo2",
    "phi3",
    "phi3-long",
    "gemma2",
)


@pytest.mark.parametrize("family", AGAIN)
def test_trained_on_again_it_starts_from_exactly_its_integers(tmp_path: Path, family: str) -> None:
    """As dlqat-train opens it: facts, tokens, every weight bit for bit, the logits; and rounding finds the same codes."""
    artifact, own = export(tmp_path, family), disk.read(tmp_path / "folded")
    found = source.resolve(str(artifact / "model.gguf"))
    loaded = source.load(found)
    facts, theirs = found.decoder, architecture.read(own.config)
    for field in set(facts.__slots__) - {"family", "windows", "ropes"}:  # a window as long as the context is none
        assert getattr(facts, field) == getattr(theirs, field), field
    assert facts.ropes.keys() == theirs.ropes.keys()
    for name in facts.ropes:  # LongRoPE's factor is said in another way
        assert all(map(np.array_equal, *(d.rope_tables(d.max_positions, name) for d in (facts, theirs))))
    assert (
        loaded.tokenizer("The miller's wheel, 123 <s>")["input_ids"]
        == byte_tokenizer()("The miller's wheel, 123 <s>")["input_ids"]
    )
    for name, layer in own.layers.items():
        assert isinstance(layer, folded.Quantized)
        weight = found.stored.tensor(f"{name}.weight")
        scales, zero_points = nearest(name, weight, layer.grid)
        assert torch.equal(weight, folded.dense(layer)), name
        assert torch.equal(quantize(weight, scales, zero_points, layer.grid), layer.codes), name
    ids = torch.arange(3, 60)[None, : facts.max_positions]
    with torch.no_grad():  # a gain that the file holds as 1 + w is less exact as w, and the same again as 1 + w
        assert torch.equal(loaded.model(ids).logits, pretrained.model(tmp_path / "folded")(ids).logits)


@pytest.mark.parametrize("name", ["smollm", "refact"])
def test_splitting_at_digits_is_read_as_llamacpp_means_it(tmp_path: Path, name: str) -> None:
    """transformers takes both names for GPT-2's splitting; a vocabulary with a merge of two digits would show it."""
    tokenizer = byte_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, content["pre_tokenizer"]],
    }
    content["model"]["merges"].append(["1", "2"])
    content["model"]["vocab"]["12"] = 320
    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    artifact = artifacts.export_model(
        tmp_path, "gguf", models.fold_model(models.tiny("llama", vocab_size=VOCABULARY)), own
    )
    file = artifact / "model.gguf"
    file.write_bytes(file.read_bytes().replace(b"\6\0\0\0\0\0\0\0smollm", b"\6\0\0\0\0\0\0\0" + name.encode()))
    read = source.load(source.resolve(str(file))).tokenizer
    assert own("12 mills")["input_ids"] == read("12 mills")["input_ids"]
    assert 320 not in read("12 mills")["input_ids"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "groups of 16": ({"bits": 4, "group_size": 16}, "one scale for 32 inputs; recipe: group_size = 32"),
    "4-bit zero-points": (
        {"bits": 4, "group_size": 32, "symmetric": False},
        "would be rounded; recipe: scale_bits = 7",
    ),
    "8-bit zero-points": (
        {"bits": 8, "group_size": 32, "symmetric": False},
        "of GGUF's types with zero-points none has so many bits",
    ),
}


@pytest.mark.parametrize(("spec", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_grid_that_does_not_fit_is_refused_before_any_work(tmp_path: Path, spec: dict[str, Any], reason: str) -> None:
    model = models.fold_model(models.tiny("llama", vocab_size=VOCABULARY), recipe(**spec))
    rows = target.plan(model, tmp_path, target.Options(64))
    assert all(reason in (row.refused or "") for row in rows if "_proj" in row.layers)
    assert not any(row.refused for row in rows if "_proj" not in row.layers)


def test_layers_of_parts_are_refused(tmp_path: Path) -> None:
    rows = target.plan(unions.fold_model("llama"), tmp_path, target.Options(64))
    assert any("one matrix a layer" in (row.refused or "") for row in rows)


def test_windows_that_llamacpp_would_ignore_are_refused(tmp_path: Path) -> None:
    model = models.fold_model(models.tiny("mistral", sliding_window=24))
    with pytest.raises(Refusal, match="attention windows of 24.*--max-context 24"):
        target.plan(model, tmp_path, target.Options(64))
    target.plan(model, tmp_path, target.Options(24))


def test_scaling_that_llamacpp_would_ignore_is_refused(tmp_path: Path) -> None:
    scaling = models._VARIANTS["llama3"]
    with pytest.raises(Refusal, match="reads its factors for granite, llama only, not for qwen2"):
        target.plan(models.fold_model(models.tiny("qwen2", **scaling)), tmp_path, target.Options(64))


LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
UNLIKE: dict[str, tuple[str, dict[str, Any], str]] = {
    "smollm3, another layer without positions": ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "in every 4th layer"),
    "smollm3, biases": ("smollm3", {"attention_bias": True}, "biases of o_proj: llama.cpp's smollm3 does not add them"),
    "qwen3, biases": ("qwen3", {"attention_bias": True}, "biases of o_proj: llama.cpp's qwen3"),
    "olmo2, biases": ("olmo2", {"attention_bias": True}, "biases of q_proj: llama.cpp's olmo2"),
    "olmo2, tied": ("olmo2", {"tie_word_embeddings": True}, "needs a head of its own"),
    "olmo2, wide heads": ("olmo2", {"head_dim": 32}, "takes hidden_size / heads"),
    "phi3, wide heads": ("phi3", {"head_dim": 32}, "llama.cpp's phi3 takes hidden_size / heads"),
    "phi3, an odd length": (
        "phi3-long",
        {"original_max_position_embeddings": 128},
        "multiple of 256, so with 128 tokens",
    ),
    "llama, LongRoPE": ("llama", {"rope_parameters": LONG}, "writes it for phi3 only, not for llama"),
    "gemma2, another scale": (
        "gemma2",
        {"query_pre_attn_scalar": 24},
        "gemma2 of 2 layers has 32, config.json means 24",
    ),
    "gemma2, untied": ("gemma2", {"tie_word_embeddings": False}, "has no other head"),
    "gemma2, windows last": ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "in every 2nd layer"),
    "gemma2, logits without a cap": ("gemma2", {"final_logit_softcapping": None}, "does not say both"),
    "gemma3, another scale": ("gemma3_text", {"query_pre_attn_scalar": 24}, "has 32, config.json means 24"),
    "gemma3, windows everywhere": ("gemma3_text", {"layer_types": ["sliding_attention"] * 2}, "in every Nth layer"),
    "gemma3, windows last": (
        "gemma3_text",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "in every Nth layer",
    ),
    "gemma3, a scaled local rope": ("gemma3_text", models.SCALED_LOCAL_ROPE, "rope_type linear of sliding_attention"),
}


@pytest.mark.parametrize(("family", "changes", "says"), UNLIKE.values(), ids=UNLIKE)
def test_what_llamacpp_has_otherwise_is_refused(
    family: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = models.fold_model(models.tiny(family, **{**models.RELEASED.get(family, {}), **changes}))
    with pytest.raises(Refusal, match=says):
        target.plan(model, tmp_path, target.Options(8))


def test_gemma_as_released_needs_no_keys_of_newer_versions() -> None:
    """Every 6th layer, a local base of 10,000; other numbers are said."""
    kinds = [*["sliding_attention"] * 5, "full_attention"]
    released, other = (
        metadata.keys(architecture.read(models.tiny("gemma3_text", **changes).config.to_dict()), 128)
        for changes in ({"num_hidden_layers": 6, "layer_types": kinds}, {})
    )
    extra = {"attention.sliding_window_pattern", "rope.freq_base_swa"}
    assert not extra & set(released)
    assert other["attention.sliding_window_pattern"] == 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("gguf"), "llama", recipe(bits=4, group_size=32))


@pytest.mark.parametrize("name", alterations.GGUF)
def test_an_altered_file_is_noticed(exported: Path, tmp_path: Path, name: str) -> None:
    assert wrong(exported) == []
    shutil.copytree(exported.parent, tmp_path / "copy")
    artifact = tmp_path / "copy" / "gguf"
    alterations.GGUF[name](artifact / "model.gguf")
    alterations.fit(artifact)
    assert [w for w in wrong(artifact) if not w.startswith("files")]


TOKENIZERS = {
    "gpt2": (byte_tokenizer, "gpt2", "gpt-2"),
    "qwen2": (qwen_tokenizer, "gpt2", "qwen2"),
    "sentencepiece": (lambda: sentencepiece_tokenizer("legacy"), "llama", "default"),
}


@pytest.mark.parametrize(("make", "model", "pre"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers(tmp_path: Path, make: Any, model: str, pre: str) -> None:
    tokenizer = make()
    made = models.fold_model(models.tiny("llama", vocab_size=max(VOCABULARY, len(tokenizer))))
    artifact = artifacts.export_model(tmp_path, "gguf", made, tokenizer)
    found = vocabulary.read(tmp_path, SPECIAL, max(VOCABULARY, len(tokenizer)))
    assert (found.model, dict(found.settings or {})["pre"]) == (model, pre)
    assert wrong(artifact) == []


@runs
@pytest.mark.parametrize("make", [byte_tokenizer, qwen_tokenizer, lambda: sentencepiece_tokenizer("legacy")])
def test_llamacpp_has_the_models_tokens(tmp_path: Path, make: Any) -> None:
    """On every kind of text of corpus.py, special tokens inside and chat prompts; letters are composed."""
    tokenizer = make()
    made = models.fold_model(models.tiny("llama", vocab_size=VOCABULARY))
    artifact = artifacts.export_model(tmp_path, "gguf", made, tokenizer)
    said = asked.ask(artifact, tmp_path, {"llama.cpp": "ready"})["llama.cpp"]
    assert said in ("ready", "ready, but it has other tokens than the model for decomposed letters")
    assert (said == "ready") == (tokenizer.backend_tokenizer.normalizer is None or make is not qwen_tokenizer)


def test_a_splitting_without_a_name_is_refused(tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("(?i:'s", "(?i:'z"))
    with pytest.raises(Refusal, match="splits texts in a way that llama.cpp has no name for"):
        vocabulary.read(tmp_path, SPECIAL, VOCABULARY)


def test_without_llamacpp_the_integers_are_proved(
    exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody named a device, and the one of this format is not fetched: L0, and "not verified"."""
    monkeypatch.setenv("DLQAT_DEVICES", str(tmp_path))
    request = CheckRequest(artifact_folders.find(exported), exported.parent / "folded", rungs=("L0", "L2"))
    report = prove(request)
    assert [c.status for c in report.checks] == [*["passed"] * 4, "not verified"]
    assert "dlqat-devices --set-up llamacpp" in report.checks[-1].summary
    with pytest.raises(Refusal, match="host-llamacpp cannot run here"):
        prove(CheckRequest(request.artifact, request.reference, "host-llamacpp"))


@pytest.fixture(scope="module")
def of_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: export(tmp_path_factory.mktemp(family), family, recipe(bits=4, group_size=32)))


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, edits in alterations.GGUF_FAMILY.items() for n in edits])
def test_an_altered_file_of_a_family_is_noticed(
    of_family: Callable[[str], Path], tmp_path: Path, family: str, name: str
) -> None:
    """In what only this family has."""
    assert wrong(of_family(family)) == []
    shutil.copytree(of_family(family).parent, tmp_path / "copy")
    artifact = tmp_path / "copy" / "gguf"
    alterations.GGUF_FAMILY[family][name](artifact / "model.gguf")
    alterations.fit(artifact)
    assert [w for w in wrong(artifact) if not w.startswith("files")]


WRITTEN = (*(name for name in alterations.FAMILY if name.startswith("granite")), "gemma3: gains without 1 +")
"""Of FAMILY: what this target writes, rather than llama.cpp having it in code."""


@pytest.mark.parametrize("name", WRITTEN)
def test_a_family_written_otherwise_is_noticed(tmp_path: Path, name: str) -> None:
    family, alter = alterations.FAMILY[name]
    with pytest.MonkeyPatch.context() as patch:
        alter(patch, models.fold_model(models.tiny(family)))
        artifact = export(tmp_path, family)
    assert wrong(artifact)


def test_layers_that_lost_theirs_have_positions_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM3 as a llama, which has all the same tensors and keys."""
    monkeypatch.setattr(names, "ARCHITECTURES", {**names.ARCHITECTURES, "smollm3": names.ARCHITECTURES["llama"]})
    said = wrong(export(tmp_path, "smollm3"))
    assert any("rope" in line for line in said)


@runs
@pytest.mark.parametrize(
    ("family", "asked"), [("llama3", None), ("qwen2", Recipe((Rule(".*", {"bits": 5, "group_size": 32}),)))]
)
def test_llamacpp_computes_with_them(tmp_path: Path, family: str, asked: Recipe | None) -> None:
    """Every product, and the logits, in llama.cpp's own arithmetic; the embedding has 8 bits, or 5 like the layers."""
    artifact = export(tmp_path, family, asked, max_position_embeddings=512)
    report = prove(CheckRequest(artifact_folders.find(artifact), tmp_path / "folded", rungs=("L1", "L2", "L3")))
    open_ones = [c.summary for c in report.checks if c.status != "passed"]
    assert [text for text in open_ones if "reached an end-of-text token" not in text] == []
    assert len(report.checks) >= 4


@runs
@pytest.mark.parametrize("family", ["smollm3", "granite", "gemma3_text", "olmo2", "phi3-long", "gemma2"])
def test_llamacpp_computes_what_only_these_families_have(tmp_path: Path, family: str) -> None:
    """Logits and texts, quickly: products are those of the others."""
    artifact = export(tmp_path, family, max_position_embeddings=1024)
    request = CheckRequest(artifact_folders.find(artifact), tmp_path / "folded", rungs=("L2", "L3"), quick=True)
    checks = prove(request).checks
    assert [c.summary for c in checks if c.status == "failed"] == []
    assert {c.rung for c in checks if c.status == "passed"} == {"L2", "L3"}


def test_gemmas_split_at_spaces_finds_none(tmp_path: Path) -> None:
    """Its normalizer replaced them; a split at anything else is refused."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    for at, accepted in ((" ", True), ("a", False)):
        split = {"type": "Split", "pattern": {"String": at}, "behavior": "MergedWithPrevious", "invert": False}
        content = {"normalizer": replace, "pre_tokenizer": split}
        if accepted:
            assert vocabulary._prefixed(content, tmp_path) is False
            continue
        with pytest.raises(Refusal, match="prepares texts in a way"):
            vocabulary._prefixed(content, tmp_path)


def test_gelu_is_looked_up_in_fp16() -> None:
    """2049 is no fp16 number, and from 10 on nothing is looked up; 1 + 2^-11 is rounded to 1."""
    x = torch.tensor([-10.5, 1 + 2**-11, 2049.0])
    looked_up = arithmetic.gelu_table(torch.nn.GELU(approximate="tanh"), x)
    one = torch.nn.functional.gelu(torch.tensor(1.0), approximate="tanh").half().float()
    assert torch.equal(looked_up, torch.stack([torch.tensor(0.0), one, torch.tensor(2049.0)]))


def test_options() -> None:
    assert pipeline.choose(target, "gguf", models.tiny("llama").config.to_dict()) == target.Options(128, "exact")
    assert Grid(3, 32, mirrored=True).folded == Grid(4, 32)
