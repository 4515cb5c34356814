# SPDX-License-Identifier: Apache-2.0
"""model.gguf, written one tensor at a time: metadata and the table of tensors first, so a model may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from dlqat.architecture import Decoder
from dlqat.exporters.gguf import metadata, names
from dlqat.exporters.gguf.storage import TYPES, Storage, stored
from dlqat.exporters.gguf.vocabulary import Vocabulary
from dlqat.exporters.storage import Leaf
from dlqat.folded.disk import FoldedModel

FILE_TYPES = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q8_0": 7, "Q2_0": 41}
"""llama.cpp's llama_ftype in general.file_type, by the type that most linears have."""


class Writer:
    """A file's metadata, then its tensors in the order in which they were announced."""

    def __init__(self, path: Path, architecture: str, storage: Storage) -> None:
        self.path, self._inner, self._storage = path, gguf.GGUFWriter(path, architecture), storage

    def text(self, key: str, value: str) -> None:
        self._inner.add_string(key, value)

    def value(self, key: str, value: metadata.Value) -> None:
        match value:
            case bool():
                self._inner.add_bool(key, value)
            case int():
                self._inner.add_uint32(key, value)
            case float():
                self._inner.add_float32(key, value)
            case str():
                self._inner.add_string(key, value)

    def array(self, key: str, values: Any) -> None:
        if values:
            self._inner.add_array(key, list(values))

    def announce(self, name: str, weight: Leaf) -> int:
        """Bytes of the tensor."""
        kind, block, size = TYPES[self._storage.kind(weight)]
        shape = tuple(weight.shape if isinstance(weight, Tensor) else weight.codes.shape)
        total = prod(shape) // block * size
        self._inner.add_tensor_info(name, shape, None, total, kind)  # pyright: ignore[reportArgumentType]
        return total

    def begin(self) -> None:
        self._inner.write_header_to_file()
        self._inner.write_kv_data_to_file()
        self._inner.write_ti_data_to_file()

    def tensor(self, weight: Leaf) -> None:
        self._inner.write_tensor_data(stored(weight, self._storage.kind(weight)))

    def close(self) -> None:
        self._inner.close()


def write(
    path: Path,
    model: FoldedModel,
    facts: Decoder,
    context: int,
    storage: Storage,
    vocabulary: Vocabulary,
    template: str | None,
    done: Callable[[str], None],
) -> dict[str, int]:
    """Write the file; bytes by parameter, by transformers' names."""
    arch = names.architecture(facts).name
    writer = Writer(path, arch, storage)
    _general(writer, model, facts, storage)
    for key, value in metadata.keys(facts, context).items():
        writer.value(f"{arch}.{key}", value)
    _tokenizer(writer, vocabulary, template)
    sizes: dict[str, int] = {}
    for module, name, weight in _all(model, facts):
        sizes[f"{module}.{name.rpartition('.')[2]}"] = writer.announce(name, weight)
    writer.begin()
    for module, name, weight in _all(model, facts):
        writer.tensor(weight)
        if name.endswith(".weight"):
            done(module)
    writer.close()
    return sizes


def _all(model: FoldedModel, facts: Decoder) -> Iterator[tuple[str, str, Leaf]]:
    """(module, name in the file, what it holds)."""
    for name, factors in metadata.rope_tensors(facts).items():
        yield name.removesuffix(".weight"), name, factors
    for module in names.modules(model, facts):
        for name, weight in names.parameters(model, facts, module):
            yield module, name, weight


def _general(writer: Writer, model: FoldedModel, facts: Decoder, storage: Storage) -> None:
    kinds = [storage.kind(model.layers[n]) for n in facts.linears() if n in model.layers]  # pyright: ignore[reportArgumentType]
    main = max(FILE_TYPES, key=kinds.count) if kinds else "F32"
    writer.text("general.type", "model")
    if name := _name(model.config):
        writer.text("general.name", name)
    writer.value("general.quantization_version", 2)
    writer.value("general.file_type", FILE_TYPES[main])


def _name(config: Mapping[str, Any]) -> str:
    return Path(str(config.get("_name_or_path") or "")).name


def _tokenizer(writer: Writer, vocabulary: Vocabulary, template: str | None) -> None:
    at = "tokenizer.ggml"
    writer.text(f"{at}.model", vocabulary.model)
    writer.array(f"{at}.tokens", vocabulary.tokens)
    writer.array(f"{at}.token_type", vocabulary.types)
    writer.array(f"{at}.merges", vocabulary.merges)
    writer.array(f"{at}.scores", vocabulary.scores)
    for key, value in (vocabulary.settings or {}).items():
        writer.value(f"{at}.{key}", value)
    if template is not None:
        writer.text("tokenizer.chat_template", template)
