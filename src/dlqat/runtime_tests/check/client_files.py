# SPDX-License-Identifier: Apache-2.0
"""The small files that clients read, against folded/: a right program with another tokenizer is a wrong model.

tokenizer.json                 folded/'s, or one that gives the same tokens on a corpus (rewritten for a client)
tokenizer_config.json, chat_template.jinja, ...   folded/'s, or the same but for a template that renders the same prompts
generation_config.json         folded/'s
config.json                    folded/'s, without how weights are stored
genai_config.json              shapes of config.json, ids and sampling of generation_config.json, and nothing else
dlqat-app.json                 ids, template, sampling, context and digests: the same, as apps read them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlqat import app_file, architecture, corpus, json_file
from dlqat.artifact import Manifest
from dlqat.folded import disk
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval.run import end_tokens
from dlqat.source import chat_template
from dlqat.source.sidecar import tokenizer

Object = Mapping[str, Any]
STORAGE = (
    "quantization_config",
    "quantization",
    "transformers.js_config",
    "dtype",
    "torch_dtype",
    "transformers_version",
)
"""Keys of config.json that say how a folder stores its weights."""
RESTATED = ("sliding_window_pattern", "rope_scaling")
"""Keys by which mlx-lm knows what folded/ says under others: compared as facts of the forward."""
CLASS = ("chat_template", "tokenizer_class")
"""Keys of tokenizer_config.json that are compared by what they do."""
NEUTRAL = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
"""Sampling where generation_config.json says nothing: transformers' own defaults."""
SAMPLING = (*NEUTRAL, "no_repeat_ngram_size", "min_length")
SESSION = {"log_id": "onnxruntime-genai", "provider_options": [], "session.qdq_matmulnbits_block_size": "128"}


def differences(folder: Path, folded: Path, context: int | None, *, shared: bool) -> Iterator[str]:
    """Every file of an artifact that means something else than folded/. `shared`: whether attention writes into its cache."""
    for name in disk.tokenizer_files(folded):
        if not (folder / name).is_file() and name in ("tokenizer.json", "generation_config.json"):
            yield f"{name}: missing, and folded/ has it"
    for name in disk.tokenizer_files(folder):
        written, wanted = folder / name, folded / name
        if wanted.is_file() and written.read_bytes() == wanted.read_bytes():
            continue
        yield from _changed(folder, folded, name)
    config = json_file.read(folded / "config.json")
    if (folder / "config.json").is_file():
        own = json_file.read(folder / "config.json")
        restated = [key for key in RESTATED if "quantization" in own and key not in config]
        yield from _unequal("config.json", own, config, (*STORAGE, *restated))
    if (folder / "genai_config.json").is_file():
        found = json_file.read(folder / "genai_config.json")
        yield from _genai(found, architecture.read(config), folded, context, shared=shared)


def app(folder: Path, folded: Path, manifest: Manifest) -> Iterator[str]:
    """What dlqat-app.json says that folded/ and manifest.json do not; nothing where there is none."""
    if not (folder / app_file.NAME).is_file():
        return
    found, reference = app_file.read(folder), tokenizer(folded)
    generation = json_file.read_if_there(folded / "generation_config.json")
    wanted = {
        "eos": sorted(end_tokens(folded, reference)) if found.eos else [],
        "eos_tokens": reference.convert_ids_to_tokens(found.eos),
        "special": {k: str(v) for k, v in reference.special_tokens_map.items() if k in found.special},
        "sampling": {k: NEUTRAL[k] if generation.get(k) is None else generation[k] for k in NEUTRAL},
        "context": manifest.context or found.context,
        "files": {name: manifest.files[name].sha256 if name in manifest.files else None for name in found.files},
    }
    own = {
        "eos": sorted(found.eos),
        "eos_tokens": found.eos_tokens,
        "special": found.special,
        "sampling": {k: found.sampling.get(k, NEUTRAL[k]) for k in NEUTRAL},
        "context": found.context,
        "files": {name: file.sha256 for name, file in found.files.items()},
    }
    yield from _unequal(app_file.NAME, own, wanted, ())
    for said in (["A"], ["B", "C", "D"]) if found.turns is not None else ():
        if found.turns is not None and found.turns.prompt(said) != _rendered(
            reference, app_file.conversation(said), None
        ):
            yield f"{app_file.NAME}: turns write another prompt than folded/'s"
    if found.template is not None:
        yield from _prompts(app_file.NAME, found.template, folded)
    elif isinstance(reference.chat_template, str):
        yield f"{app_file.NAME}: has no chat template, and folded/ has one"


def _changed(folder: Path, folded: Path, name: str) -> Iterator[str]:
    """A file with other bytes than folded/'s."""
    if name == "tokenizer.json":
        yield from _tokens(folder, folded)
    elif name.endswith(".jinja"):
        yield from _prompts(name, (folder / name).read_text(encoding="utf-8"), folded)
    elif name.endswith(".json"):
        found, wanted = json_file.read(folder / name), json_file.read_if_there(folded / name)
        yield from _unequal(name, found, wanted, CLASS)
        if isinstance(template := found.get("chat_template"), str):
            yield from _prompts(name, template, folded)
    else:
        yield f"{name}: is not the one of folded/"


def _tokens(folder: Path, folded: Path) -> Iterator[str]:
    """Composed letters only: a client that cannot normalize gets a tokenizer without normalizer."""
    own, wanted = tokenizer(folder), tokenizer(folded)
    special = [str(token) for token in wanted.all_special_tokens]
    for kind, text in corpus.texts(special).items():
        if kind == corpus.DECOMPOSED[0]:
            continue
        if own(text, add_special_tokens=False)["input_ids"] != wanted(text, add_special_tokens=False)["input_ids"]:
            yield f"tokenizer.json: other tokens than folded/'s for {kind}"
            return


def _prompts(name: str, template: str, folded: Path) -> Iterator[str]:
    reference = tokenizer(folded)
    if reference.chat_template is None:
        yield f"{name}: has a chat template, and folded/ has none"
        return
    for messages in corpus.CONVERSATIONS:
        wanted, found = (_rendered(reference, messages, text) for text in (None, template))
        if wanted != found:
            yield f"{name}: its chat template writes another prompt than folded/'s"
            return


def _rendered(reference: Any, messages: corpus.Messages, template: str | None) -> str | None:
    try:
        return chat_template.render(reference, messages, template=template, prompt=True).text
    except (Refusal, ValueError):
        return None


def _unequal(name: str, found: Object, wanted: Object, without: tuple[str, ...]) -> Iterator[str]:
    for key in sorted({*found, *wanted} - set(without)):
        if found.get(key) != wanted.get(key):
            yield f"{name}: {key} is {found.get(key)!r}, folded/ has {wanted.get(key)!r}"


def _genai(
    found: Object, facts: architecture.Decoder, folded: Path, context: int | None, *, shared: bool
) -> Iterator[str]:
    name = "genai_config.json"
    model, search = dict(found.get("model", {})), dict(found.get("search", {}))
    decoder = dict(model.pop("decoder", {}))
    shapes = {
        "head_size": facts.head_dim,
        "hidden_size": facts.hidden_size,
        "num_attention_heads": facts.heads,
        "num_hidden_layers": facts.layers,
        "num_key_value_heads": facts.kv_heads,
    }
    told = {key: decoder.pop(key, None) for key in shapes}
    yield from _unequal(name, told, shapes, ())
    settings = dict(decoder.pop("session_options", {}))
    yield from (f"{name}: session_options has {k} = {v!r}" for k, v in settings.items() if SESSION.get(k) != v)
    yield from (f"{name}: decoder has {key}" for key in sorted(set(decoder) - {"filename", "inputs", "outputs"}))
    generation = json_file.read_if_there(folded / "generation_config.json")
    known = {"vocab_size": facts.vocab_size, "context_length": context or model.get("context_length")}
    yield from _unequal(name, {k: model.get(k) for k in known}, known, ())
    odd = set(model) - {*known, "type", "bos_token_id", "eos_token_id", "pad_token_id"}
    yield from (f"{name}: model has {key}" for key in sorted(odd))
    given = {key: generation[key] for key in SAMPLING if generation.get(key) is not None}
    wanted = {**NEUTRAL, **given, "max_length": known["context_length"], "num_beams": 1}
    yield from _unequal(f"{name}, search", search, {**wanted, "past_present_share_buffer": shared}, ())
