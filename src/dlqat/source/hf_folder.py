# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder (config.json and safetensors, in one file or in shards), read from its headers."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from dlqat import json_file, plain_file, tensor_file
from dlqat.model_dir import RECORD
from dlqat.refusal import Refusal
from dlqat.source import float_model, language_part, pretrained
from dlqat.source.float_model import FloatModel, Shape

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Index(msgspec.Struct, frozen=True):
    """model.safetensors.index.json."""

    weight_map: dict[str, str]


def config(folder: Path, *, text_only: bool = False) -> dict[str, Any]:
    """config.json as it stands; `text_only`: of the language part. Refusal where there is none, where the model is quantized
    already, or has other parts and nobody said that one is enough."""
    path = folder / "config.json"
    if not path.is_file():
        raise Refusal(f"{folder} has no config.json; {_hint(folder)}")
    raw = json_file.read(path)
    if quantization := raw.pop("quantization_config", None):  # {} says nothing
        method = quantization.get("quant_method", "unknown method") if isinstance(quantization, dict) else quantization
        raise Refusal(f"{folder} is quantized already ({method}); training starts from the float model")
    return language_part.config(raw, str(folder), text_only=text_only)


def _hint(folder: Path) -> str:
    """What a folder without a config.json is likely to be, and what to do."""
    if (folder / RECORD).is_file():
        return "it is a model_dir that dlqat-train writes: give it to dlqat-export, or train again from its base model"
    if (folder / "adapter_config.json").is_file():
        return "it is a PEFT adapter, and not the base model of one"
    others = sorted(p.name for p in folder.glob("*.gguf"))
    return f"give the file itself: {folder / others[0]}" if others else "is it a Hugging Face model folder?"


def open_folder(folder: Path, *, text_only: bool = False) -> FloatModel:
    """The model of a folder, or its language part. Refusal names the file or tensor that is missing, truncated or no float."""
    raw = config(folder, text_only=text_only)
    pretrained.look(folder)
    float_model.complete(raw, torch.float32)  # an unknown architecture is refused before the weights are looked at
    files = _weight_files(folder)
    where: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    inner: dict[str, str] = {}
    everything: list[str] = []
    dtypes: set[torch.dtype] = set()
    for path in files:
        with tensor_file.opened(path) as file:
            stored = sorted(file.keys())
            everything += stored
            found = language_part.names(stored) if text_only else {name: name for name in stored}
            for own, name in found.items():
                header = file.get_slice(name)
                inner[own], where[own], shapes[own] = name, path, tuple(header.get_shape())
                if header.get_dtype() not in _FLOATS:
                    raise Refusal(f"{path}: tensor {name} is {header.get_dtype()}; a float model is needed")
                dtypes.add(_FLOATS[header.get_dtype()])
    if not dtypes:
        raise Refusal(f"{folder}: its weight files hold no tensors{' of a language part' if text_only else ''}")
    dtype = reduce(torch.promote_types, dtypes)  # no value changes: bfloat16 with float32 becomes float32

    def tensor(name: str) -> Tensor:
        return tensor_file.tensor(where[name], inner[name]).to(dtype)

    notes = (language_part.left_out(everything, inner),) if text_only else ()
    return FloatModel(float_model.complete(raw, dtype), shapes, dtype, tensor, (folder / "config.json", *files), notes)


def shards(folder: Path) -> list[str]:
    """The files that the index names; none if there is no index. Refusal of a name that leads out of the folder."""
    if not (folder / INDEX).is_file():
        return []
    named = sorted(set(json_file.read_as(folder / INDEX, Index).weight_map.values()))
    for name in named:
        if (reason := plain_file.name_fault(name)) is not None:
            raise Refusal(f"{folder / INDEX} names {name!r}, which {reason}")
    return named


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    named = shards(folder)
    for name in named:  # the file may be a link: the hub's cache keeps the bytes elsewhere
        if (reason := plain_file.fault(folder / name)) is not None:
            raise Refusal(f"{folder / INDEX} names {name!r}, which {reason}")
    if named:
        return [folder / name for name in named]
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise Refusal(f"{folder} has only pickled weights ({pickles[0]}), which can run code; convert to safetensors")
    raise Refusal(f"{folder} has no {SINGLE} and no {INDEX}")
