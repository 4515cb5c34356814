# SPDX-License-Identifier: Apache-2.0
"""`--text-only`: the language part of a model with a vision tower, through training's start and folding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
)
from typer.testing import CliRunner

import models
from dlqat import architecture, source
from dlqat.api import fold
from dlqat.refusal import Refusal
from dlqat.trainer import cli
from toy_tokenizer import byte_tokenizer

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def seeing(folder: Path, **changes: Any) -> Gemma3ForConditionalGeneration:
    """A tiny Gemma 3 with a vision tower, and its folder."""
    text = models.tiny("gemma3_text", vocab_size=328, tie_word_embeddings=True)
    config = Gemma3Config(
        text_config=text.config.to_dict(), vision_config=TOWER, mm_tokens_per_image=1, image_token_index=300,
        boi_token_index=301, eoi_token_index=302, eos_token_id=[2, 5],
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))
    return model


def test_the_language_part_goes_down_the_road(tmp_path: Path) -> None:
    whole = seeing(tmp_path / "seeing")
    words = [str(tmp_path / "seeing"), "-o", str(tmp_path / "out"), "--method", "rtn", "--text-only"]
    said = CliRunner().invoke(cli.app, words, env={"COLUMNS": "300"})
    assert said.exit_code == 0, said.output
    assert "left out: multi_modal_projector, vision_tower" in said.output
    found = source.resolve(str(tmp_path / "seeing"), text_only=True)
    assert found.config["eos_token_id"] == [2, 5]
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(source.load(found).model(ids).logits, whole(input_ids=ids).logits)
    folded = AutoModelForCausalLM.from_pretrained(fold(tmp_path / "out"))  # from the record alone
    assert type(folded).__name__ == "Gemma3ForCausalLM"
    assert folded(ids).logits.shape == (1, 37, 328)


def test_ministral_3_as_it_is_published(tmp_path: Path) -> None:
    text = models.tiny("ministral3")
    tower = {**TOWER, "head_dim": 16}
    parts = {"text_config": text.config.to_dict(), "vision_config": {"model_type": "pixtral", **tower}}
    config = Mistral3Config(**parts, tie_word_embeddings=False)
    whole = Mistral3ForConditionalGeneration(config).eval()
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    whole.save_pretrained(tmp_path)
    found = source.resolve(str(tmp_path), text_only=True)
    assert found.decoder == architecture.read(text.config.to_dict())
    assert {**text.state_dict()}.keys() == source.weights(found).keys()
    assert all(torch.equal(tensor, source.weights(found)[name]) for name, tensor in text.state_dict().items())


@pytest.mark.parametrize(
    ("was", "now"), [("language_model.model.", "model.language_model."), ("vision_tower.", "model.vision_tower.")]
)
def test_names_of_newer_files(tmp_path: Path, was: str, now: str) -> None:
    seeing(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name.replace(was, now): t for name, t in tensors.items()}, tmp_path / "model.safetensors")
    assert len(source.resolve(str(tmp_path), text_only=True).stored.shapes) == 28


def test_one_line_where_it_is_not_given_or_cannot_be(tmp_path: Path) -> None:
    seeing(tmp_path)
    with pytest.raises(Refusal, match=r"is a gemma3 model.*its language part, a gemma3_text, .*: --text-only$"):
        source.resolve(str(tmp_path))
    seeing(tmp_path, model_type="qwen3_5", text_config={"model_type": "qwen3_5_text"})
    for text_only in (False, True):
        with pytest.raises(
            Refusal, match="is a qwen3_5 model, and its language part a qwen3_5_text, which is not known"
        ):
            source.resolve(str(tmp_path), text_only=text_only)
    models.tiny("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(Refusal, match="it is a model of text already; leave --text-only out"):
        source.resolve(str(tmp_path / "llama"), text_only=True)


def test_a_tensor_that_the_language_part_lacks_is_named(tmp_path: Path) -> None:
    seeing(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("language_model.model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(Refusal, match="tensor model.norm.weight .* is missing"):
        source.resolve(str(tmp_path), text_only=True)
