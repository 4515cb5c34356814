# SPDX-License-Identifier: Apache-2.0
"""Every seed: models, folded/ folders, records (records.py) and artifacts of every format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

import artifacts
import coreml_runs
import models
import test_gguf
import test_mlx
from dlqat import artifact as folders
from dlqat import recipe, source
from dlqat.devices.all import device as device_of
from dlqat.devices.device import DeviceFailure
from dlqat.devices.process.isolated import isolated
from dlqat.exporters import manifest, tokens
from dlqat.folded import disk
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import integers
from dlqat.runtime_tests.readers.contents import Contents
from dlqat.runtime_tests.reference.model import Reference
from fuzz.records import records
from fuzz.target import Target, digest, same
from toy_tokenizer import toy_tokenizer

TEXT = (5, 17, 40, 3, 99, 8)
"""Tokens that an artifact which passed is run on."""


def targets(home: Path) -> list[Target]:
    """Every seed, written into `home`."""
    return [*_models(home / "models"), *_folded(home / "folded"), *records(home / "records"), *_artifacts(home)]


def _models(home: Path) -> Iterator[Target]:
    folder = home / "hf"
    models.tiny("llama-tied").save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)

    def load() -> str:
        found = source.load(source.resolve(str(folder)))
        return digest(*found.model.state_dict().values(), found.source.config, found.tokenizer("the cat").input_ids)

    yield Target("model folder", folder, tuple(sorted(folder.glob("*.*"))), same(load, "another float model"), 8)

    path = home / "tiny.gguf"
    _gguf(path)

    def load_gguf() -> str:
        found = source.resolve(str(path))
        return digest(*(t for _, t in sorted(source.weights(found).items())), found.config)

    yield Target("gguf", home, (path,), same(load_gguf, "another float model"), 12)
    yield _lora(home / "lora", folder)


def _lora(home: Path, base: Path) -> Target:
    """A PEFT adapter, which is merged into its base."""
    home.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    out, inputs = models.tiny("llama-tied").get_parameter("model.layers.0.self_attn.q_proj.weight").shape
    halves = {name.format("A"): torch.ones(2, inputs), name.format("B"): torch.ones(out, 2)}
    safetensors.torch.save_file(halves, home / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "lora_alpha": 8, "r": 2}
    (home / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"], "bias": "none"}))

    def load() -> str:
        found = source.resolve(str(home))
        return digest(*(t for _, t in sorted(source.weights(found).items())), found.config)

    return Target("adapter of peft", home, tuple(sorted(home.iterdir())), same(load, "another float model"), 5)


def _gguf(path: Path) -> None:
    model = models.tiny("qwen2")
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        stem, suffix = name.rsplit(".", 1)
        kind = gguf.GGMLQuantizationType.Q4_0 if parameter.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(parameter.detach().contiguous().numpy(), kind)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _folded(home: Path) -> Iterator[Target]:
    toy_tokenizer().save_pretrained(home)
    folder = home / "folded"
    model = models.fold_model(models.tiny("llama-tied"), recipe.portable(3, 16))
    disk.write(model, folder, files=home)

    def read() -> str:
        found = disk.read(folder)
        layers = [(name, repr(found.layers[name]), *integers_of(found.layers[name])) for name in found.layers]
        return digest(*(x for row in layers for x in row), *found.tensors.values(), found.specs, found.config)

    def integers_of(layer: Any) -> list[torch.Tensor]:
        return [t for t in (layer.codes, layer.scales, layer.zero_points) if t is not None]

    weights = tuple(
        folder / name for name in ("dlqat.json", "config.json", "model.safetensors", "integers.safetensors")
    )
    yield Target("folded", folder, weights, same(read, "another folded model"), 8)

    def reference() -> str:
        network = Reference(folder).network
        return digest(*network.state_dict().values(), network.config.to_dict())

    yield Target("reference", folder, weights, same(reference, "another folded model"), 2)
    special = tuple(sorted(p for p in folder.iterdir() if p.name.startswith(("tokenizer", "generation", "special"))))

    def read_tokens() -> str:
        found = tokens.read(folder, disk.read(folder).config)
        return digest(found, source.tokenizer(folder)("the cat").input_ids)

    yield Target("tokenizer", folder, special, same(read_tokens, "another tokenizer"), 4)


def _artifacts(home: Path) -> Iterator[Target]:
    made = {form: artifacts.export(home / form, form) for form in ("qdq", "ort", "web")}
    made["xnnpack"] = artifacts.export(home / "xnnpack", "xnnpack")
    made["gguf file"] = test_gguf.export(home / "gguf-target", asked=test_gguf.recipe(bits=4, group_size=32))
    made["mlx"] = test_mlx.export(home / "mlx", asked=test_mlx.recipe(bits=4, group_size=32))
    made["coreml"] = coreml_runs.export(home / "coreml", models.fold_model(models.tiny("llama-tied")))
    for form, folder in made.items():
        yield _artifact(form, folder)
    folder = made["ort"]
    small = tuple(folder / name for name in ("manifest.json", "genai_config.json"))

    def find() -> str:
        found = folders.find(folder)
        return repr((found, list(folders.damage(found)), manifest.earlier(folder)))

    yield Target("manifest", folder, small, same(find, "another manifest; its digests do not fit the files"), 5)


def _artifact(form: str, folder: Path) -> Target:
    """The program and its data, against folded/: what L0 says of the bytes (a fitting manifest is assumed)."""
    found = folders.find(folder)
    wanted = integers.wanted(Reference(folder.parent / "folded").model)
    package = found.program.is_dir()
    files = [p for p in found.program.rglob("*") if p.is_file()] if package else [found.program]
    files += [] if package else sorted(p for p in found.program.parent.glob("*data*") if p.is_file())
    before = _contents(readers.read(found.program))
    device = isolated(device_of(None, found.format))
    setting = device.settings(found.program, 1)[0]

    def logits() -> NDArray[np.float32]:
        session = device.open(found.program, setting)
        try:
            return session.logits(TEXT)
        finally:
            session.close()

    right = logits()

    def run() -> str:
        contents = readers.read(found.program)
        result = integers.compare(contents, wanted, lambda _: None)
        if result.differences:
            return "failed"
        if _contents(contents) == before:
            return "unchanged"
        try:
            same = bool((logits() == right).all())
        except DeviceFailure:
            return "failed"  # by L2: the runtime refuses it
        return "accepted: it computes the same" if same else "missed"

    return Target(form, folder, tuple(files), run, 1 if form == "xnnpack" else 4)


def _contents(found: Contents) -> str:
    """Everything that the proof compares."""
    parts: list[Any] = [found.form, found.faults]
    for weight in found.weights:
        own = weight.load()
        parts += [weight.name, weight.kind, own.codes, own.scales, own.zero_points, own.block]
    for name, value in (*sorted(found.labels.items()), *sorted(found.tensors.items())):
        parts += [name, value]
    parts += [part for fact in found.facts for part in (fact.kind, fact.value)]
    return digest(*parts)
