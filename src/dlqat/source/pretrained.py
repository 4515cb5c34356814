# SPDX-License-Identifier: Apache-2.0
"""The one door to transformers: every config, tokenizer and model is loaded here (tests/test_hostile.py finds another).

transformers runs code that a model folder brings along: a .py file that "auto_map" names (with trust_remote_code unset it
asks on the terminal, and a `y` on standard input is an answer), an attention kernel that it fetches from a hub, pickled
adapters. So the folder is looked at first, and what would lead there is refused by name; then transformers is called so
that it could not even if something was overlooked: trust_remote_code=False, local files, safetensors, attention "sdpa".
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    TokenizersBackend,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from dlqat import architecture, json_file, tensor_file
from dlqat.refusal import Refusal

SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Files of settings that transformers reads in a model folder."""
ATTENTION = "sdpa"
"""Other implementations are another program; some of them are fetched from a hub when they are named."""
_RUNS = ("auto_map", "custom_generate", "custom_pipelines", "kernel_config", "use_kernels", "transformers_weights")
"""Keys that make transformers run, fetch or open what is not in the files that were looked at."""
_IMPLEMENTATION = "_implementation"
"""The end of keys that say which kernels compute (attn_implementation, experts_implementation)."""
_PLAIN = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm")
"""Implementations of transformers' own. What a file says of them is overridden: it is a matter of speed."""


def look(folder: Path) -> None:
    """Refusal if a model folder brings code along, or names some elsewhere."""
    for name in (n for n in SETTINGS if os.path.lexists(folder / n)):
        for key, value in _pairs(json_file.read(folder / name)):
            asks = key in _RUNS and value not in (None, False, {}, [])
            if asks or (key.endswith(_IMPLEMENTATION) and not (isinstance(value, str | None) and value in _PLAIN)):
                raise Refusal(
                    f"{folder / name} has {key} = {str(value)[:80]!r}: code that comes with a model, which dlqat never "
                    "runs; if the model is a plain one without it, remove that key"
                )
    for name in ("adapter_config.json", "adapter_model.bin"):
        if (folder / name).exists():
            raise Refusal(f"{folder} holds {name}: an adapter is not part of the model; merge it first, or remove it")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value, at any depth, with what stands there."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from cast("dict[str, Any]", one).items()
            waiting += cast("dict[str, Any]", one).values()
        elif isinstance(one, list):
            waiting += cast("list[Any]", one)


def tokenizer(folder: Path) -> Any:
    """tokenizer.json of a folder as it stands; raises what transformers and tokenizers raise."""
    look(folder)
    return TokenizersBackend.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def family_tokenizer(folder: Path) -> Any:
    """What AutoTokenizer makes of a folder: by the class of the model's family (sidecar.py says when that is another)."""
    look(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def gguf_tokenizer(path: Path, known: bool) -> Any:
    """The tokenizer inside a .gguf file; what lies beside the file (transformers would read that too) is not seen. `known`:
    transformers knows the file's architecture, and a class of tokenizers for it."""
    auto: Any = AutoTokenizer if known else TokenizersBackend
    with tempfile.TemporaryDirectory() as alone:
        Path(alone, path.name).symlink_to(path.resolve())
        found: Any = auto.from_pretrained(alone, gguf_file=path.name, local_files_only=True, trust_remote_code=False)
    found.name_or_path = str(path)
    return found


def generation_config(folder: Path) -> GenerationConfig:
    """generation_config.json of a folder; raises what transformers raises."""
    look(folder)
    return GenerationConfig.from_pretrained(folder, local_files_only=True)


def config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """The config object of a config.json's fields; raises what transformers raises where they make none."""
    _refuse_younger(fields)
    found = AutoConfig.for_model(**fields)
    found._attn_implementation = _attention(fields)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the setter is called so
    return found


def _refuse_younger(fields: Mapping[str, Any]) -> None:
    """Refusal of a family that dlqat knows and the installed transformers does not."""
    family = str(fields.get("model_type"))
    if family in architecture.FAMILIES and family not in CONFIG_MAPPING:
        raise Refusal(f"transformers {transformers.__version__} does not know {family}; pip install -U transformers")


def _attention(fields: Mapping[str, Any]) -> str:
    family = architecture.FAMILIES.get(str(fields.get("model_type")))
    return "eager" if family is not None and family.eager else ATTENTION


def model_class(config: PreTrainedConfig) -> Any:
    """transformers' class with a language-model head for a config object."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def model_of(fields: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """The model of a config.json with these parameters; no folder is read."""
    whole = config(fields)
    return model_class(whole).from_pretrained(
        None,
        config=whole,
        state_dict=dict(state),
        dtype=dtype,
        attn_implementation=_attention(fields),
        trust_remote_code=False,
    )


def model(folder: Path) -> Any:
    """The model in a folder as transformers loads it, in float32. Refusal of code and of an unknown architecture."""
    look(folder)
    fields = json_file.read(folder / "config.json")
    _refuse_younger(fields)
    decoder = architecture.read(fields)
    stored = {name.removesuffix("_packed") for name in tensor_file.names(folder / "model.safetensors")}
    needed = [*(f"{path}.weight" for path in decoder.linears()), "model.embed_tokens.weight", "model.norm.weight"]
    if missing := [name for name in needed if name not in stored]:  # transformers would make them up, of any size
        raise Refusal(f"{folder}: tensor {missing[0]} is missing, which config.json asks for; fold the model again")
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=_attention(fields),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
