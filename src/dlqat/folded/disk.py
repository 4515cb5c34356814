# SPDX-License-Identifier: Apache-2.0
"""folded/: the integers of a model, as a Hugging Face folder that transformers loads by itself.

    config.json            the model's, with compressed-tensors' quantization_config; rotary positions in the keys
                           of transformers 5 and of 4
    model.safetensors      quantized linears as `pack-quantized` (weight_packed, weight_scale, ...), asymmetric
                           ones as `int-quantized` (weight int8, weight_scale, weight_zero_point): transformers
                           5.23 cannot load packed zero-points; norms, biases and the rest as dense float32
    integers.safetensors   codes and scales of what stands dense above: embeddings (transformers has no
                           quantized Embedding), low-rank and clustered layers; same four suffixes
    dlqat.json             format version, structure and training spec of every layer, digest of the adapters
    tokenizer, generation_config, chat template as the source model has them

AutoModelForCausalLM.from_pretrained(folder) is therefore the reference, and none of our code is in it.
Layers are written and read one at a time, so a model larger than memory can be folded and exported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dlqat import architecture, atomic, folded, json_file, own_folder, tensor_file, tensor_writer
from dlqat.architecture import EMBEDDING, HEAD, Config
from dlqat.folded import Folded, Quantized, packing
from dlqat.grid import Grid, as_json
from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal

FORMAT = 1
AGAIN = "; fold the model again"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """dlqat.json of folded/: the structure and the training spec of every layer."""

    layers: dict[str, dict[str, Any]]
    specs: dict[str, dict[str, Any]]


class Lazy(Mapping[str, T]):
    """A mapping whose values are read when they are asked for, and not kept."""

    def __init__(self, names: list[str], load: Callable[[str], T]) -> None:
        self._names, self._load = names, load

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would load the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False)
class FoldedModel:
    """A model of integers. Layers by module name (model.embed_tokens, model.layers.0.self_attn.q_proj,
    ..., lm_head unless it is tied), all other parameters by full name (norms, biases)."""

    config: Config
    layers: Mapping[str, Folded]
    tensors: Mapping[str, Tensor]
    specs: Mapping[str, LayerSpec]

    @property
    def tied(self) -> bool:
        """Whether the head multiplies with the embedding's weight."""
        return HEAD not in self.layers and f"{HEAD}.weight" not in self.tensors

    def behind(self, name: str) -> str:
        """The module whose weight a linear multiplies with: itself, or the embedding for a tied head."""
        return EMBEDDING if name == HEAD and self.tied else name


def write(model: FoldedModel, target: Path, files: Path, adapters: str = "") -> None:
    """Write folded/ atomically at `target`; tokenizer and generation files are copied from `files`.

    adapters: the sha256 of what was folded, which tells later whether that has changed."""
    with own_folder.replacing(target, earlier) as draft:
        copy_tokenizer(files, draft)
        structure, grids = _write_layers(model, draft)
        record = {
            "format": FORMAT,
            "layers": structure,
            "specs": {name: as_json(spec) for name, spec in model.specs.items()},
            "adapters": adapters,
        }
        rope = _rope(model.config)
        config = {**model.config, **rope, "dtype": "float32", "quantization_config": _quantization_config(model, grids)}
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (draft / "dlqat.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _write_layers(model: FoldedModel, draft: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Grid]]:
    """Both files of tensors, each layer asked for once and let go; the structure of every layer, and the grids of those that
    transformers quantizes itself."""
    structure, grids = dict[str, dict[str, Any]](), dict[str, Grid]()
    main_file = tensor_writer.writing(draft / "model.safetensors", {"format": "pt"})
    with main_file as main, tensor_writer.writing(draft / "integers.safetensors") as aside:
        for name, tensor in model.tensors.items():
            main.add(name, tensor.to(torch.float32))
        for name in model.layers:
            layer = model.layers[name]
            if (reason := folded.check(layer, name)) is not None:
                raise Refusal(f"{reason}; the layer cannot be folded")
            structure[name] = packing.describe(layer)
            if isinstance(layer, Quantized) and _in_transformers(name):
                grids[name] = layer.grid
                packing.write(layer, name, main)
                continue
            _write_dense(layer, f"{name}.weight", main)
            for path, leaf in folded.leaves(layer, name):
                packing.write(leaf, path, aside)
            for path, ids in folded.labels(layer, name):
                aside.add(path, ids.to(torch.int32))
    return structure, grids


def _write_dense(layer: Folded, name: str, file: tensor_writer.Writer) -> None:
    if not isinstance(layer, Quantized):
        file.add(name, folded.dense(layer).to(torch.float32))
        return
    dtype = torch.bfloat16 if layer.grid.power_of_two else torch.float32  # then it is exact
    parts = (folded.rows(layer, block) for block in tensor_writer.blocks(*layer.codes.shape))
    file.rows(name, dtype, layer.codes.shape, (folded.dense(part).to(dtype) for part in parts))


def read(folder: Path) -> FoldedModel:
    """Open folded/. Refusal names what is missing, truncated, misshapen or not a number."""
    folder = Path(folder)
    record, config = json_file.read(folder / "dlqat.json"), json_file.read(folder / "config.json")
    if record.get("format") != FORMAT:
        raise Refusal(f"{folder}/dlqat.json has format {record.get('format')!r}, this dlqat reads {FORMAT}; fold again")
    stated = json_file.convert(record, Record, str(folder / "dlqat.json"), AGAIN)
    specs = {n: json_file.exactly(s, LayerSpec, f"{folder}/dlqat.json: {n}", AGAIN) for n, s in stated.specs.items()}
    files = folder / "model.safetensors", folder / "integers.safetensors"
    names = {name: path for path in files for name in tensor_file.names(path, AGAIN)}

    def tensor(name: str) -> Tensor:
        if name not in names:
            raise Refusal(f"{folder}: tensor {name} is missing; fold the model again")
        return tensor_file.tensor(names[name], name, AGAIN)

    def layer(name: str) -> Folded:
        found = packing.build(stated.layers[name], name, tensor)
        if (reason := folded.check(found, name)) is not None:
            raise Refusal(f"{folder}: {reason}")
        return found

    def parameter(name: str) -> Tensor:
        found = tensor(name)
        if not tensor_file.finite(found):
            raise Refusal(f"{folder}: tensor {name} holds NaN or infinity")
        return found

    plain = sorted(
        n
        for n, path in names.items()
        if path.name == "model.safetensors" and (n.endswith(".bias") or n.rpartition(".")[0] not in stated.layers)
    )
    config = {k: v for k, v in config.items() if k != "quantization_config"}
    return FoldedModel(config, Lazy(list(stated.layers), layer), Lazy(plain, parameter), specs)


def earlier(folder: Path) -> dict[str, str]:
    """Path -> sha256 of what a dlqat that wrote no marker put into folded/: its four files, and copies from model_dir."""
    try:
        record, config = json_file.read(folder / "dlqat.json"), json_file.read(folder / "config.json")
    except Refusal:
        return {}
    method = config.get("quantization_config")
    if (
        record.get("format") != FORMAT
        or not {"layers", "specs", "adapters"} <= set(record)
        or not isinstance(method, dict)
    ):
        return {}
    copied = [n for n in TOKENIZER_FILES if (folder / n).is_file() and (folder.parent / n).is_file()]
    same = [n for n in copied if atomic.sha256(folder / n) == atomic.sha256(folder.parent / n)]
    return {n: atomic.sha256(folder / n) for n in (*WEIGHT_FILES, *same) if (folder / n).is_file()}


WEIGHT_FILES = ("config.json", "dlqat.json", "model.safetensors", "integers.safetensors")
"""What stands in folded/ besides tokenizer and generation settings."""
GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    GENERATION,
)
MORE_TEMPLATES = "additional_chat_templates/*.jinja"
"""Where transformers keeps chat templates beside the default one."""


def tokenizer_files(folder: Path) -> list[str]:
    """Those that are in `folder`, relative to it."""
    more = (path.relative_to(folder).as_posix() for path in sorted(folder.glob(MORE_TEMPLATES)))
    return [*(name for name in TOKENIZER_FILES if (folder / name).is_file()), *more]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what an app needs beside the weights: tokenizer, chat template, generation settings."""
    for name in tokenizer_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        atomic.copy(source / name, target / name)


def copy_generation(source: Path, target: Path) -> None:
    """Copy generation_config.json, if there is one."""
    if (source / GENERATION).is_file():
        atomic.copy(source / GENERATION, target / GENERATION)


def _in_transformers(name: str) -> bool:
    """transformers has a quantized Linear, but no quantized Embedding."""
    return name != EMBEDDING


def _rope(config: Config) -> dict[str, Any]:
    """Rotary positions in transformers 5's key and in those of 4, which overlooks the former and takes a base of 10,000."""
    ropes = architecture.read(config).ropes
    if "" not in ropes:  # none, or one for each type of layer, as Gemma 3 has them
        names = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
        return {key: ropes[kind]["rope_theta"] for kind, key in names.items() if kind in ropes}
    rope = dict(ropes[""])
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    earlier: dict[str, Any] = {} if rope["rope_type"] == "default" else {"rope_scaling": scaling}
    if "partial_rotary_factor" in rope:
        earlier["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if rope["rope_type"] == "longrope":  # 4 takes these three keys and no other, and 5 takes them for all that there is
        short = {"type": "longrope", **{key: rope[key] for key in ("short_factor", "long_factor")}}
        again = {**config, **earlier, "rope_parameters": {**short, "rope_theta": rope["rope_theta"]}}
        if architecture.read(again).ropes[""] == {**rope, "type": "longrope"}:
            earlier["rope_scaling"] = short
        else:
            del earlier["rope_scaling"]
    return {"rope_parameters": rope, "rope_theta": rope["rope_theta"], **earlier}


def _layout(grid: Grid) -> str:
    return "pack-quantized" if grid.symmetric else "int-quantized"


def _quantization_config(model: FoldedModel, known: Mapping[str, Grid]) -> dict[str, Any]:
    """compressed-tensors' config: one group per grid, its layers named one by one. `known`: those that it holds."""
    grids: dict[Grid, list[str]] = {}
    for name, grid in known.items():
        grids.setdefault(grid, []).append(name)
    rest = [name for name in model.layers if name not in known]
    groups: dict[str, Any] = {}
    for i, (grid, names) in enumerate(grids.items()):
        group = (
            {"strategy": "channel"} if grid.group_size is None else {"strategy": "group", "group_size": grid.group_size}
        )
        weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False, **group}
        groups[f"group_{i}"] = {"targets": names, "weights": weights, "format": _layout(grid)}
    ignore = sorted({*rest, *([] if HEAD in model.layers else [HEAD])})
    layouts = {_layout(grid) for grid in grids}
    return {
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
    }
