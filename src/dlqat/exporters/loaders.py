# SPDX-License-Identifier: Apache-2.0
"""The clients' own loaders: what an app calls to get from an artifact's folder to tokens and a chat prompt."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlqat import fetched
from dlqat.corpus import Messages


@dataclass(frozen=True, slots=True)
class Loaded:
    """A client's tokenizer."""

    encode: Callable[[str], Sequence[int]]
    """The tokens of a text, nothing added."""
    prompt: Callable[[Messages], str] | None
    """Its chat template, up to where the answer begins; None where the prompt is the app's work."""
    adds_begin: bool = False
    """Whether the client can be asked to begin a plain prompt as the model does."""


class NotHere(Exception):
    """Why a client cannot be asked."""


def genai(folder: Path) -> Loaded:
    """onnxruntime-genai: genai_config.json, tokenizer and template; not the weights, which dlqat-check loads."""
    try:
        og: Any = importlib.import_module("onnxruntime_genai")
    except ImportError as error:
        raise NotHere("onnxruntime-genai is not installed") from error
    tokenizer: Any = og.Tokenizer(og.Config(str(folder)))

    def prompt(messages: Messages) -> str:
        return tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)

    return Loaded(lambda text: tokenizer.encode(text).tolist(), prompt)


def runner(folder: Path) -> Loaded:
    """ExecuTorch's TextLLMRunner: the C++ reader of tokenizer.json. It gets finished prompts."""
    tokenizer = cpp_tokenizer(folder)
    return Loaded(lambda text: [int(i) for i in tokenizer.encode(text, 0, 0)], None, adds_begin=True)


def cpp_tokenizer(folder: Path) -> Any:
    """What the runners make of tokenizer.json."""
    try:
        tokenizers: Any = importlib.import_module("pytorch_tokenizers")
    except ImportError as error:
        raise NotHere("pytorch_tokenizers is not installed") from error
    tokenizer: Any = tokenizers.CppHFTokenizer()
    tokenizer.load(str(folder / "tokenizer.json"))
    return tokenizer


def react_native(folder: Path) -> Loaded:
    """react-native-executorch: the same tokenizer, and the template of tokenizer_config.json without the special tokens'
    names, which it does not hand over. Rendered by transformers' jinja here."""
    template = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    if template is None:
        raise NotHere("the model has no chat template")

    def prompt(messages: Messages) -> str:
        from dlqat.source import chat_template  # with transformers, and every command imports this file

        return chat_template.write(template, messages, {}, prompt=True).text

    return Loaded(runner(folder).encode, prompt)


NODE = """
const { createRequire } = require('node:module'); const path = require('node:path');
const lines = require('node:readline').createInterface({ input: process.stdin });
const say = (answer) => console.log(JSON.stringify(answer));
let client; const [folder, fetched] = process.argv.slice(1), name = path.basename(folder);
for (const place of [process.cwd(), fetched]) try {
  client ??= createRequire(path.join(place, 'x.js'))('@huggingface/transformers');
} catch (error) { if (place === fetched) { say({ absent: String(error.message).split('\\n')[0] }); process.exit(); } }
client.env.allowRemoteModels = false; client.env.localModelPath = path.dirname(folder);
(async () => {
  const tokenizer = await client.AutoTokenizer.from_pretrained(name); await client.AutoConfig.from_pretrained(name);
  say({});
  const ask = { encode: (text) => tokenizer.encode(text, { add_special_tokens: false }),
    prompt: (chat) => tokenizer.apply_chat_template(chat, { tokenize: false, add_generation_prompt: true }) };
  for await (const line of lines) {
    const [what, value] = JSON.parse(line);
    try { say({ answer: ask[what](value) }); } catch (error) { say({ error: String(error.message) }); }
  }
})().catch((error) => { say({ error: String(error.message) }); process.exit(); });
"""
"""Answers requests, one a line, as the tokenizer that transformers.js makes of the folder in its first argument."""


def transformers_js(folder: Path) -> Loaded:
    """transformers.js in Node: of the folder that the command runs in, or the one that dlqat-devices fetched."""
    if shutil.which("node") is None:
        raise NotHere("node is not on PATH")
    process = subprocess.Popen(
        ["node", "-e", NODE, str(folder.resolve()), str(fetched.transformers_js())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )  # it ends with its input, when this process does
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def heard() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(stdout.readline() or '{"error": "node ended"}')
        if "error" in found:
            raise ValueError(found["error"])
        return found

    def ask(what: str, value: Any) -> Any:
        stdin.write(json.dumps([what, value]) + "\n")
        stdin.flush()
        return heard()["answer"]

    if "absent" in heard():
        raise NotHere(
            "@huggingface/transformers is not installed for Node here; dlqat-devices --set-up transformers-js"
        )
    return Loaded(lambda text: ask("encode", text), lambda messages: ask("prompt", messages), adds_begin=True)


def llamacpp(folder: Path) -> Loaded:
    """llama.cpp, where it was fetched: the vocabulary in model.gguf. Templates are the apps' work, each with its own jinja."""
    where = fetched.release(*fetched.LLAMACPP)
    if not (where / "ready").is_file():
        raise NotHere("llama.cpp is not set up; dlqat-devices --set-up llamacpp")
    sys.path.insert(0, str(where))
    lib: Any = importlib.import_module("cyllama.llama.llama_cpp")
    lib.disable_logging()
    parameters = lib.LlamaModelParams()
    parameters.n_gpu_layers = 0  # vocab_only would do, but cyllama 0.2.18 then asks for heads and aborts
    model: Any = lib.LlamaModel(path_model=str(folder / "model.gguf"), params=parameters)
    vocabulary: Any = model.get_vocab()

    def encode(text: str) -> Sequence[int]:
        assert model is not None  # it owns the vocabulary
        return [int(i) for i in vocabulary.tokenize(text, False, True)]

    return Loaded(encode, None, adds_begin=True)


CLIENTS: dict[str, Callable[[Path], Loaded]] = {
    "onnxruntime-genai": genai,
    "transformers.js": transformers_js,
    "TextLLMRunner": runner,
    "react-native-executorch": react_native,
    "llama.cpp": llamacpp,
}
