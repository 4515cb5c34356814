# SPDX-License-Identifier: Apache-2.0
"""The small files that make one ONNX folder load in public clients, unchanged.

    genai_config.json                  onnxruntime-genai: Model(folder)
    config.json, generation_config.json
    tokenizer.json, tokenizer_config.json, chat_template.jinja
    onnx/model.onnx, onnx/model.onnx_data     transformers.js looks here, and for this name of the data file
    onnx/model_generate.onnx                  genai's: the same nodes and data, logits of the last position only

Where the chat template stands is templates.py's part, what becomes of generation_config.json generation.py's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlqat.architecture import FAMILIES, Config, Decoder
from dlqat.exporters import generation, templates
from dlqat.exporters.generation import GENAI
from dlqat.exporters.onnx.io import GENERATE, PAST_NAME, PRESENT_NAME
from dlqat.exporters.tokens import SpecialTokens, load
from dlqat.folded import disk

SUBFOLDER = "onnx"
# What an app may override and genai reads from here; the model's own values come from generation_config.json.
SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}

# A row with one scale is cut into blocks when onnxruntime fuses it: by 128 a token takes 8 % less time than by 32.
SESSION = {"qdq": {"session.qdq_matmulnbits_block_size": "128"}, "ort": {}, "web": {}}


def write(
    folder: Path, source: Path, facts: Decoder, config: Config, tokens: SpecialTokens, *, form: str, context: int
) -> dict[str, str]:
    """Tokenizer files of `source` and the clients' configs, into `folder`. Client -> its state for the manifest."""
    disk.copy_tokenizer(source, folder)
    untold = templates.write(folder)
    _write(folder / "config.json", _transformers_js(config))
    settings = load(folder / "generation_config.json")
    _write(folder / "genai_config.json", genai(facts, tokens, settings, form=form, context=context))
    states = {client: generation.state(client, settings, untold) for client in ("onnxruntime-genai", "transformers.js")}
    if not FAMILIES[facts.family].transformers_js:
        states["transformers.js"] = f"not set up: it does not know model_type {facts.family!r}"
    return states


def genai(
    facts: Decoder, tokens: SpecialTokens, settings: dict[str, Any], *, form: str, context: int
) -> dict[str, Any]:
    """genai_config.json (onnxruntime-genai 0.18, src/config.cpp).

    GroupQueryAttention writes into the cache that it reads, so past and present share one buffer; the standard
    Attention returns a longer cache, so they cannot.
    """
    past, present = PAST_NAME.replace("{}", "%d", 1), PRESENT_NAME.replace("{}", "%d", 1)
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if form != "ort":
        inputs["position_ids"] = "position_ids"
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **SESSION[form]},
        "filename": f"{SUBFOLDER}/{GENERATE}",
        "head_size": facts.head_dim,
        "hidden_size": facts.hidden_size,
        "num_attention_heads": facts.heads,
        "num_hidden_layers": facts.layers,
        "num_key_value_heads": facts.kv_heads,
        "inputs": {**inputs, "past_key_names": past.format("key"), "past_value_names": past.format("value")},
        "outputs": {
            "logits": "logits",
            "present_key_names": present.format("key"),
            "present_value_names": present.format("value"),
        },
    }
    model = {
        "type": FAMILIES[facts.family].genai,
        "vocab_size": facts.vocab_size,
        "context_length": context,
        "bos_token_id": tokens.eos[0] if tokens.bos is None else tokens.bos,  # genai wants one; nothing prepends it
        "eos_token_id": list(tokens.eos),
        "pad_token_id": tokens.pad,
        "decoder": decoder,
    }
    given = {key: value for key, value in settings.items() if value is not None}  # null: not given; genai refuses it
    sampling = SAMPLING | {key: given[key] for key in GENAI if key in given}
    search = {"max_length": context, "num_beams": 1, "past_present_share_buffer": form == "ort", **sampling}
    return {"model": model, "search": search}


def _transformers_js(config: Config) -> dict[str, Any]:
    """config.json: "fp32" means the file without a suffix; the data file is one chunk."""
    return {**config, "transformers.js_config": {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
