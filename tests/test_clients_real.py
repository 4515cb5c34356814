# SPDX-License-Identifier: Apache-2.0
"""SmolLM2's GGUF and MLX files in clients as apps have them: template applied, the model's own answer, an end at EOS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import artifacts
from dlqat import artifact as folders
from dlqat import fetched

pytestmark = pytest.mark.real
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTION = "What is the capital of France?"
SHORT = "Repeat this sentence: The cat sat on the mat."
MOST = 64
NOISE = 1.0
"""The largest difference that llama.cpp's int8 inputs made to a logit of this model was 0.91 (dlqat-check, L2)."""

CHAT = """
const [home, file, system, question, most] = process.argv.slice(2);
const { getLlama, LlamaChatSession, resolveChatWrapper } = await import(`${home}/node_modules/node-llama-cpp/dist/index.js`);
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1 });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: 1024 });
const contextSequence = context.getSequence(), chatWrapper = resolveChatWrapper(model, { type: "jinjaTemplate" });
const session = new LlamaChatSession({ contextSequence, chatWrapper, systemPrompt: system }), tokens = [];
const found = await session.promptWithMeta(question, { temperature: 0, maxTokens: +most, onToken: (more) => tokens.push(...more) });
const { stopReason: stop, responseText: text } = found;
console.log(JSON.stringify({ tokens, stop, text, all: contextSequence.contextTokens, wrapper: chatWrapper.wrapperName }));
process.exit(0);
"""


@pytest.fixture(scope="module")
def model(smollm2_folded: Path) -> tuple[Any, Any]:
    """folded/ as transformers loads it: tokenizer and network."""
    return AutoTokenizer.from_pretrained(smollm2_folded), AutoModelForCausalLM.from_pretrained(smollm2_folded)


def export(folder: Path, form: str, folded: Path) -> Path:
    (folder / "folded").symlink_to(folded)
    return artifacts.export_folded(folder, form)


def prompt(tokenizer: Any, *messages: tuple[str, str]) -> list[int]:
    said = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]


def unlike(network: Any, before: Sequence[int], answer: Sequence[int]) -> list[int]:
    """Places of an answer whose token is not the greedy one, nor one that noise could have made it."""
    with torch.no_grad():
        rows = network(torch.tensor([[*before, *answer]])).logits[0, len(before) - 1 : -1]
    short = rows.amax(-1) - rows.gather(-1, torch.tensor(answer)[:, None])[:, 0]
    return torch.nonzero(short > NOISE)[:, 0].tolist()


def test_a_chat_in_node_llama_cpp(smollm2_folded: Path, model: tuple[Any, Any], tmp_path: Path) -> None:
    """Its own chat session with the template in the file: the prompt's tokens, the answer, and where it ends."""
    artifacts.runnable("node-llamacpp")
    tokenizer, network = model
    program = folders.find(export(tmp_path, "gguf", smollm2_folded)).program
    (tmp_path / "chat.mjs").write_text(CHAT)
    words = (fetched.home() / "node-llamacpp", program, SYSTEM, QUESTION, MOST)
    done = subprocess.run(
        ["node", str(tmp_path / "chat.mjs"), *map(str, words)], check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before = prompt(tokenizer, ("system", SYSTEM), ("user", QUESTION))
    assert (found["wrapper"], found["stop"]) == ("JinjaTemplate", "eogToken")
    assert found["all"][: len(before)] == before
    answer = found["tokens"]
    assert tokenizer.decode(answer) == found["text"]
    assert unlike(network, before, [*answer, tokenizer.eos_token_id]) == []
    paris = answer.index(tokenizer.encode(" Paris")[0])
    answer[paris : paris + 1] = tokenizer.encode(" Rome")
    assert unlike(network, before, answer)  # the negative control


def test_mlx_lm_generate(smollm2_folded: Path, model: tuple[Any, Any], tmp_path: Path) -> None:
    """Its command line: in float32 the text is transformers' own, and so are the numbers of tokens, EOS included."""
    device: Any = artifacts.runnable("host-mlx")
    tokenizer, network = model
    before = prompt(tokenizer, ("user", SHORT))
    wanted = network.generate(torch.tensor([before]), do_sample=False, max_new_tokens=MOST)[0, len(before) :].tolist()
    assert wanted[-1] == tokenizer.eos_token_id
    release, artifact = device.release.folder, export(tmp_path, "mlx", smollm2_folded)
    words = (release / "bin" / "mlx_lm.generate", "--model", artifact, "--prompt", SHORT, "--max-tokens", MOST)
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        check=False, capture_output=True, text=True, timeout=240, env={**os.environ, "PYTHONPATH": str(release)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, text, figures = done.stdout.split("==========\n")
    assert text.rstrip("\n") == tokenizer.decode(wanted[:-1])
    assert f"Prompt: {len(before)} tokens," in figures
    assert f"Generation: {len(wanted)} tokens," in figures
