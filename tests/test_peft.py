# SPDX-License-Identifier: Apache-2.0
"""A PEFT adapter as MODEL is merged into its base, or refused by name. The logits of eleven kinds of adapters were compared
with peft 0.21.2's own (within 4e-6); peft is not installed where tests run, so its formula stands here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from dlqat import source
from dlqat.exporters import fold, templates
from dlqat.refusal import Refusal
from dlqat.trainer import cli
from models import tiny
from toy_tokenizer import CHATML, toy_tokenizer

Q, DOWN, HEAD, EMBED = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    "lm_head",
    "model.embed_tokens",
)


def write_base(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    tiny(family).to(dtype).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def write_adapter(folder: Path, names: dict[str, int], whole: dict[str, Tensor] | None = None, **config: Any) -> None:
    """LoRA of `names` (and their ranks) of a tiny model."""
    folder.mkdir()
    random = torch.Generator().manual_seed(1)
    shapes = {name: tuple(module.weight.shape) for name, module in tiny("llama").named_modules() if name in names}
    tensors = {
        f"base_model.model.{name}.lora_{half}.weight": torch.randn(shape, generator=random)
        for name, rank in names.items()
        for half, shape in (("A", (rank, shapes[name][1])), ("B", (shapes[name][0], rank)))
    }
    tensors |= {f"base_model.model.{name}": tensor for name, tensor in (whole or {}).items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "base_model_name_or_path": str(folder.parent / "base"), "lora_alpha": 8, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))


def delta(folder: Path, name: str) -> Tensor:
    found = load_file(folder / "adapter_model.safetensors")
    return found[f"base_model.model.{name}.lora_B.weight"] @ found[f"base_model.model.{name}.lora_A.weight"]


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (8 / 4, 8 / 2)),
        ({"use_rslora": True}, (8 / 2, 8 / 2**0.5)),
        ({"alpha_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 5}}, (3 / 4, 5 / 2)),
    ],
    ids=["LoRA", "rsLoRA", "alpha of layers"],
)
def test_an_adapter_is_merged_into_its_base(
    tmp_path: Path, config: dict[str, Any], scales: tuple[float, float]
) -> None:
    base = write_base(tmp_path / "base")
    norm = torch.rand(64)
    write_adapter(tmp_path / "adapter", {Q: 4, DOWN: 2}, {"model.norm.weight": norm}, **config)
    found = source.resolve(str(tmp_path / "adapter"))
    wanted = {**base, "model.norm.weight": norm}
    for name, scale in zip((Q, DOWN), scales, strict=True):
        wanted[f"{name}.weight"] = base[f"{name}.weight"] + scale * delta(tmp_path / "adapter", name)
    weights = source.weights(found)
    assert {*weights} == {*wanted}
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())
    assert found.stored.notes == (
        f"{tmp_path}/adapter is a PEFT adapter: LoRA of 2 layers and 1 whole tensors merged into {tmp_path}/base",
    )
    before = source.fingerprint(found)
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base"), "lora_alpha": 9})
    )
    assert source.fingerprint(source.resolve(str(tmp_path / "adapter"))) != before


def test_a_merged_weight_has_the_bases_dtype(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype=torch.bfloat16)
    write_adapter(tmp_path / "adapter", {Q: 4})
    found = source.weights(source.resolve(str(tmp_path / "adapter")))[f"{Q}.weight"]
    whole = base[f"{Q}.weight"].float() + 2 * delta(tmp_path / "adapter", Q)
    assert torch.equal(found, whole.to(torch.bfloat16))


def test_a_tied_head_that_is_adapted_gets_its_own_weight(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "llama-tied")
    write_adapter(tmp_path / "head", {Q: 4, HEAD: 4})
    found = source.resolve(str(tmp_path / "head"))
    weights = source.weights(found)
    assert not found.decoder.tied and "its own, although config.json says" in found.stored.notes[-1]
    embedding = base[f"{EMBED}.weight"]
    assert torch.equal(weights[f"{HEAD}.weight"], embedding + 2 * delta(tmp_path / "head", HEAD))
    assert torch.equal(weights[f"{EMBED}.weight"], embedding)
    # peft trains a copy of a whole embedding, and the head stays
    write_adapter(tmp_path / "whole", {Q: 4}, {f"{EMBED}.weight": embedding + 1})
    weights = source.weights(source.resolve(str(tmp_path / "whole")))
    assert torch.equal(weights[f"{HEAD}.weight"], embedding)
    assert torch.equal(weights[f"{EMBED}.weight"], embedding + 1)


BAD = {
    "kind": ({"peft_type": "IA3"}, "an adapter of kind IA3 cannot be merged"),
    "no-kind": ({"peft_type": None}, r"adapter_config.json: Expected str, got null at \$.peft_type"),
    "dora": ({"use_dora": True}, "use_dora = 'True' is not read; merge it with peft"),
    "new switch": ({"use_nothing_known": True}, "use_nothing_known = 'True' is not read"),
    "start": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not read"),
    "pattern": ({"alpha_pattern": {"(a+)+$": 3}}, r"alpha_pattern '\(a\+\)\+\$' is not a plain name"),
    "base": ({"base_model_name_or_path": "org/absent"}, r"its base model \(org/absent\) is not on this machine; .*--base"),
    "no-base": ({"base_model_name_or_path": None}, r"its base model \(not named\) is not on this machine"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_adapter_that_means_something_else_is_refused(tmp_path: Path, name: str) -> None:
    config, says = BAD[name]
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", {Q: 4})
    source.resolve(str(tmp_path / "adapter"))  # fine before
    shutil.rmtree(tmp_path / "adapter")
    write_adapter(tmp_path / "adapter", {Q: 4}, **config)
    with pytest.raises(Refusal, match=says):
        source.resolve(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{Q}.lora_magnitude_vector": torch.ones(64)}, "lora_magnitude_vector is not LoRA of a linear layer"),
        ({f"{DOWN}.lora_A.weight": torch.ones(2, 96)}, "has no lora_B that fits it"),
        ({"model.layers.9.mlp.up_proj.weight": torch.ones(96, 64)}, "up_proj.weight is .* does not fit .*base; is it another"),
        ({"model.norm.weight": torch.ones(3)}, r"model.norm.weight is \[3\], which does not fit"),
    ],
)  # fmt: skip
def test_a_tensor_without_a_place_is_refused(tmp_path: Path, tensors: dict[str, Tensor], says: str) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", {Q: 4}, tensors)
    with pytest.raises(Refusal, match=says):
        source.resolve(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(Refusal, match="only pickled weights, which can run code"):
        source.resolve(str(tmp_path / "adapter"))


def test_an_adapter_is_trained_folded_and_found_again_when_its_base_moves(tmp_path: Path) -> None:
    """With the tokenizer that lies beside the adapter: training on a chat leaves its template there."""
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", {Q: 4}, base_model_name_or_path="org/absent")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    toy_tokenizer().save_pretrained(tmp_path / "adapter")
    words = [str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), "--method", "rtn", "--precision", "fp32"]
    result = CliRunner().invoke(cli.app, [*words, "--base", str(tmp_path / "base")], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "LoRA of 1 layers merged into" in result.output
    assert templates.read(fold.fold(tmp_path / "out")) == {"default": CHATML}
    assert (tmp_path / "out" / "folded" / "generation_config.json").exists()  # the base's
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(Refusal, match="name its new place with --base"):
        fold.fold(tmp_path / "out")
    fold.fold(tmp_path / "out", str(tmp_path / "moved"))
    (tmp_path / "moved").rename(tmp_path / "base")
    (tmp_path / "adapter").rename(tmp_path / "elsewhere")
    fold.fold(tmp_path / "out", str(tmp_path / "elsewhere"))
    with pytest.raises(Refusal, match=r"base is not a PEFT adapter, so it has no other base; leave --base other out"):
        source.resolve(str(tmp_path / "base"), "other")
