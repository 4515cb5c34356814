# SPDX-License-Identifier: Apache-2.0
"""A PEFT adapter (LoRA) and its base as one model: W + alpha / r * B A, tensor by tensor when it is asked for.

What a fine-tune with peft or TRL leaves is an adapter and not a model. It is merged as merge_and_unload does, in float32
and then in the base's dtype. Settings under which the model computes something else (DoRA, aLoRA, a start that changes the
base) are refused by name; so is a tensor that has no place. A head that is adapted while it is tied gets its own weight.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import snapshot_download
from torch import Tensor

from dlqat import json_file, plain_file, tensor_file
from dlqat.refusal import Refusal
from dlqat.source import float_model, hf_folder
from dlqat.source.float_model import FloatModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""init_lora_weights that leave the base as it is (pissa, olora, corda and loftq do not)."""
_KNOWN = ("use_rslora",)
"""Switches that change what an adapter means, and are read."""


class Config(msgspec.Struct, frozen=True):
    """adapter_config.json."""

    peft_type: str
    lora_alpha: float = 8.0
    base_model_name_or_path: str | None = None
    use_rslora: bool = False
    ensure_weight_tying: bool = False
    alpha_pattern: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class _Lora:
    """The tensors of one layer, by name in the adapter's file."""

    a: str
    b: str
    scale: float


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path, named: str | None) -> Path:
    """The folder of the base: `named` by the user, else what the adapter's config names, if that is on this machine."""
    name = named or _config(folder).base_model_name_or_path or ""
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if named is None and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:  # noqa: BLE001, S110 # not in the cache: whatever class says so
            pass
    raise Refusal(
        f"{folder} is a PEFT adapter, and its base model ({name or 'not named'}) is not on this machine; name its folder "
        "with --base, or merge the two (merge_and_unload) and give the folder of the result"
    )


def merge(folder: Path, base_folder: Path) -> FloatModel:
    """The adapter in `folder` merged into its base."""
    config = _config(folder)
    base = float_model.as_stored(hf_folder.open_folder(base_folder))
    path = folder / WEIGHTS
    if not path.is_file():
        kind = (
            "only pickled weights, which can run code" if (folder / "adapter_model.bin").exists() else f"no {WEIGHTS}"
        )
        raise Refusal(f"{folder} has {kind}; save the adapter again with a recent peft")
    with tensor_file.opened(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    layers = _layers(shapes, config, path)
    whole = {_module(name): name for name in shapes if not _is_lora(name)}
    head = {float_model.HEAD: float_model.EMBEDDING} if float_model.HEAD not in base.shapes else {}
    merged = dict(base.shapes)
    for name in (*layers, *whole):
        wanted = (shapes[layers[name].b][0], shapes[layers[name].a][1]) if name in layers else shapes[whole[name]]
        there = {base.shapes.get(head.get(name, name)), shapes[whole[name]] if name in whole else wanted}
        if there != {wanted}:
            raise Refusal(f"{path}: {name} is {list(wanted)}, which does not fit {base_folder}; is it another base?")
        merged[name] = wanted
    if (
        float_model.EMBEDDING in whole and not config.ensure_weight_tying
    ):  # peft trains a copy: the head stays as it was
        merged.setdefault(float_model.HEAD, base.shapes[float_model.EMBEDDING])

    def tensor(name: str) -> Tensor:
        own = tensor_file.tensor(path, whole[name]) if name in whole else base.tensor(head.get(name, name))
        if name not in layers:
            return own.to(base.dtype)
        a, b = (tensor_file.tensor(path, one).float() for one in (layers[name].a, layers[name].b))
        return (own.float() + layers[name].scale * (b @ a)).to(base.dtype)

    more = f" and {len(whole)} whole tensors" if whole else ""
    note = f"{folder} is a PEFT adapter: LoRA of {len(layers)} layers{more} merged into {base_folder}"
    files = (*base.files, folder / CONFIG, path)
    return replace(base, shapes=merged, tensor=tensor, files=files, notes=(*base.notes, note))


def _config(folder: Path) -> Config:
    path = folder / CONFIG
    raw = json_file.read(path)
    found = json_file.convert(raw, Config, str(path))
    if found.peft_type != "LORA":
        raise Refusal(f"{path}: an adapter of kind {found.peft_type} cannot be merged; LORA can")
    switches = {k: v for k, v in raw.items() if v and k not in _KNOWN and (k.startswith("use_") or k in _OTHER)}
    if not _plain(raw.get("init_lora_weights")):
        switches["init_lora_weights"] = raw["init_lora_weights"]
    for key, value in switches.items():
        raise Refusal(f"{path}: {key} = {str(value)[:60]!r} is not read; merge it with peft (merge_and_unload)")
    for pattern in found.alpha_pattern or {}:
        if not re.fullmatch(r"[\w.]+", pattern):
            raise Refusal(
                f"{path}: alpha_pattern {pattern!r} is not a plain name; merge it with peft (merge_and_unload)"
            )
    return found


_OTHER = ("fan_in_fan_out", "layer_replication", "alora_invocation_tokens", "megatron_config", "lora_bias")


def _plain(start: Any) -> bool:
    return any(start is known or start == known for known in _STARTS)


def _layers(shapes: dict[str, tuple[int, ...]], config: Config, path: Path) -> dict[str, _Lora]:
    """Weight's name -> its LoRA."""
    found: dict[str, _Lora] = {}
    for a in (name for name in shapes if name.endswith(".lora_A.weight")):
        b = a.replace(".lora_A.", ".lora_B.")
        if b not in shapes or len(shapes[a]) != 2 or len(shapes[b]) != 2 or shapes[a][0] != shapes[b][1]:
            raise Refusal(f"{path}: {a} has no lora_B that fits it; save the adapter again")
        layer = _module(a.removesuffix(".lora_A.weight"))
        rank = shapes[a][0]
        patterns = config.alpha_pattern or {}
        alpha = next((v for p, v in patterns.items() if f".{layer}".endswith(f".{p}")), config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        found[f"{layer}.weight"] = _Lora(a, b, scale)
    if strange := [n for n in shapes if _is_lora(n) and not re.search(r"\.lora_[AB]\.weight$", n)]:
        raise Refusal(f"{path}: {strange[0]} is not LoRA of a linear layer; merge it with peft (merge_and_unload)")
    if not found:
        raise Refusal(f"{path} holds no LoRA")
    return found


def _is_lora(name: str) -> bool:
    return "lora_" in name


def _module(name: str) -> str:
    """The name in the base model, without what peft puts between."""
    return re.sub(r"\.(modules_to_save|base_layer)(?=\.)", "", name.removeprefix(_PREFIX))


def tokenizer_folder(folder: Path, base_folder: Path) -> Path:
    """Where the tokenizer is: training with a new chat template leaves it beside the adapter."""
    return folder if plain_file.fault(folder / "tokenizer.json") is None else base_folder
