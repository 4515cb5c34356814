# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: seeds of every format that dlqat reads, and what may come of a damaged one.

refused      one line: Refusal, Unreadable, Damaged, DeviceFailure, Garbled
failed       the check of an artifact noticed: other integers, something that it cannot explain
unchanged    what was read is what was there before
accepted     another input that is as good as the first (a weight of a float model, a word in a text), by reason
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

import artifacts
import coreml_runs
import models
from dlqat import adapter, own_folder, plan, recipe, source
from dlqat import artifact as folders
from dlqat.devices.all import device as device_of
from dlqat.devices.device import DeviceFailure
from dlqat.devices.process import wire
from dlqat.devices.process.isolated import isolated
from dlqat.exporters import fold, manifest, tokens
from dlqat.folded import disk
from dlqat.recipe import LayerSpec
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import integers
from dlqat.runtime_tests.eval import schema
from dlqat.runtime_tests.eval.journal import Journal
from dlqat.runtime_tests.readers.contents import Contents
from dlqat.runtime_tests.reference.model import Reference
from dlqat.trainer import request, state
from dlqat.trainer.data import files, rows
from dlqat.tree import Clustered, LowRank, Sum
from toy_tokenizer import toy_tokenizer

TEXT = (5, 17, 40, 3, 99, 8)
"""Tokens that an artifact which passed is run on."""


@dataclass(frozen=True, eq=False)
class Target:
    """Files in `folder`, one of which is damaged, and `run`, which reads them and says what came of it."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    run: Callable[[], str]
    weight: int = 4
    """How often it is taken: readers that start a program are slow."""


def targets(home: Path) -> list[Target]:
    """Every seed, written into `home`."""
    return [*_models(home / "models"), *_folded(home / "folded"), *_records(home / "records"), *_artifacts(home)]


def _digest(*values: Any) -> str:
    """Of tensors and JSON values."""
    found = hashlib.sha256()
    for value in values:
        array = (
            value.detach().contiguous().flatten().view(torch.uint8).numpy()
            if isinstance(value, torch.Tensor)
            else value
        )
        found.update(array.tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
    return found.hexdigest()


def _same(read: Callable[[], str], reason: str) -> Callable[[], str]:
    """Compare what is read with what was read before anything was damaged."""
    before = read()
    return lambda: "unchanged" if read() == before else f"accepted: {reason}"


def _models(home: Path) -> Iterator[Target]:
    folder = home / "hf"
    models.tiny("llama-tied").save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)

    def load() -> str:
        found = source.load(source.resolve(str(folder)))
        return _digest(*found.model.state_dict().values(), found.source.config, found.tokenizer("the cat").input_ids)

    yield Target("model folder", folder, tuple(sorted(folder.glob("*.*"))), _same(load, "another float model"), 8)

    path = home / "tiny.gguf"
    _gguf(path)

    def load_gguf() -> str:
        found = source.resolve(str(path))
        return _digest(*(t for _, t in sorted(source.weights(found).items())), found.config)

    yield Target("gguf", home, (path,), _same(load_gguf, "another float model"), 12)


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
        return _digest(*(x for row in layers for x in row), *found.tensors.values(), found.specs, found.config)

    def integers_of(layer: Any) -> list[torch.Tensor]:
        return [t for t in (layer.codes, layer.scales, layer.zero_points) if t is not None]

    weights = tuple(
        folder / name for name in ("dlqat.json", "config.json", "model.safetensors", "integers.safetensors")
    )
    yield Target("folded", folder, weights, _same(read, "another folded model"), 8)

    def reference() -> str:
        network = Reference(folder).network
        return _digest(*network.state_dict().values(), network.config.to_dict())

    yield Target("reference", folder, weights, _same(reference, "another folded model"), 2)
    special = tuple(sorted(p for p in folder.iterdir() if p.name.startswith(("tokenizer", "generation", "special"))))

    def read_tokens() -> str:
        found = tokens.read(folder, disk.read(folder).config)
        return _digest(found, source.tokenizer(folder)("the cat").input_ids)

    yield Target("tokenizer", folder, special, _same(read_tokens, "another tokenizer"), 4)


def _records(home: Path) -> Iterator[Target]:
    """Small files of ours, each with its reader."""
    home.mkdir(parents=True)
    record = {
        "format": 1, "source": "x", "fingerprint": "0", "recipe": [{"match": "a.*", "bits": 4}], "data": [["a", "b"]],
        "options": {"steps": 3}, "method": {"name": "dlqat"}, "versions": {},
    }  # fmt: skip
    (home / "dlqat.json").write_text(json.dumps(record))
    adapters = {"l.scales": torch.ones(4, 2), "l.magnitude": torch.ones(4, 2), "l.lora_a": torch.ones(2, 64)}
    adapter.write({**adapters, "l.lora_b": torch.ones(4, 2)}, home / "adapters.safetensors")
    spec = LayerSpec()
    plan.write({"l": Sum((spec, LowRank(spec, spec, 2))), "m": Clustered(plan.Pruned(2, 4, spec), 3)}, home)
    (home / "recipe.toml").write_text(
        "[[rule]]\nmatch = 'model\\..*'\nbits = 3\nalpha = 4\n[[rule]]\nmatch = 'x'\nrank = 0\n"
    )
    (home / "data.jsonl").write_text(
        '{"text": "a"}\n{"prompt": "a", "completion": "b"}\n{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    state.save(home, 7, {"model.a": torch.ones(3)})
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    result = {"program": {"sha256": "0"}, "setting": "x", "command": "y", "text": {"tokens": 9, "artifact": share}}
    result["tasks"] = {
        "t": {"acc": {"questions": 9, "artifact": share, "difference": {**share, "better": 1, "worse": 2}}}
    }
    (home / "eval.json").write_text(json.dumps(result))
    journal = Journal(home / "journal", {})
    journal.put("a", [1.5, True])
    journal.close()
    message = wire.encode(wire.Message({"op": "logits"}, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.int64)}))
    (home / "frame").write_bytes(message)
    with own_folder.replacing(home / "own") as draft:
        (draft / "a").write_text("a")
    tokenizer = toy_tokenizer()

    def journal_read() -> str:
        again = Journal(home / "journal", {})
        found = dict(again._answers)
        again.close()
        return repr(found)

    def frame() -> str:
        content, at = (home / "frame").read_bytes(), 0

        def read(count: int) -> bytes:
            nonlocal at
            at += count
            if at > len(content):
                raise wire.Garbled("the stream ended")
            return content[at - count : at]

        found = wire.decode(read)
        return _digest(found.header, *found.arrays.values())

    def train_record() -> str:
        return repr((request._recorded(home / "dlqat.json"), fold._record(home)))

    readers_of: dict[str, Callable[[], str]] = {
        "dlqat.json": train_record,
        "adapters.safetensors": lambda: _digest(
            *(v for _, v in sorted(adapter.load(home / "adapters.safetensors").items()))
        ),
        "plan.json": lambda: repr(plan.read(home)),
        "recipe.toml": lambda: repr(recipe.read(home / "recipe.toml")),
        "data.jsonl": lambda: repr([m for row in files.jsonl(home / "data.jsonl") for m in rows.mark(row, tokenizer)]),
        "state.safetensors": lambda: repr(state.done(home)),
        "eval.json": lambda: repr(schema.checked(folders.read_json(home / "eval.json"), home / "eval.json")),
        "frame": frame,
        "own/.dlqat-written.json": lambda: repr(own_folder.foreign(home / "own")),
        f"journal/{journal.path.name}": journal_read,
    }
    for name, read in readers_of.items():
        yield Target(name.partition("/")[0], home, (home / name,), _same(read, "another content"), 5)


def _artifacts(home: Path) -> Iterator[Target]:
    made = {form: artifacts.export(home / form, form) for form in ("qdq", "ort", "web")}
    made["xnnpack"] = artifacts.export(home / "xnnpack", "xnnpack")
    made["coreml"] = coreml_runs.export(home / "coreml", models.fold_model(models.tiny("llama-tied")))
    for form, folder in made.items():
        yield _artifact(form, folder)
    folder = made["ort"]
    small = tuple(folder / name for name in ("manifest.json", "genai_config.json"))

    def find() -> str:
        found = folders.find(folder)
        return repr((found, list(folders.damage(found)), manifest.earlier(folder)))

    yield Target("manifest", folder, small, _same(find, "another manifest; its digests do not fit the files"), 5)


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
    return _digest(*parts)
