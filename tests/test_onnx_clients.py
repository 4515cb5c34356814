# SPDX-License-Identifier: Apache-2.0
"""One exported folder, three public clients, nothing changed in between: on the real SmolLM2-135M-Instruct."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dlqat import fetched
from dlqat.devices.all import DEVICES
from dlqat.exporters.onnx import target as onnx_target
from dlqat.folded import disk
from onnx_runs import FORMS, Text, session

pytestmark = pytest.mark.real

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ASK = """
import path from 'node:path';
import { env, pipeline } from '@huggingface/transformers';
const folder = process.argv[1];
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const ask = await pipeline('text-generation', path.basename(folder));
const answer = await ask(JSON.parse(process.argv[2]), { max_new_tokens: 60, do_sample: false });
console.log(JSON.stringify(answer[0].generated_text.at(-1).content));
"""


@pytest.fixture(scope="module", params=(*FORMS, "web"))
def exported(request: pytest.FixtureRequest, smollm2_folded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model = disk.read(smollm2_folded)
    onnx_target.write(model, smollm2_folded, folder, onnx_target.Options(512, request.param))
    return folder


def test_onnxruntime(exported: Path, smollm2_folded: Path) -> None:
    """The logits of a prompt against transformers on folded/."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(smollm2_folded)("The capital of France is", return_tensors="np")["input_ids"]
    network = AutoModelForCausalLM.from_pretrained(smollm2_folded, dtype="float32").eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(ids)).logits.numpy()
    run = session(exported / "onnx" / "model.onnx")
    logits = Text(run).step(ids)
    # 30 float32 layers and logits up to 30: 1e-4 was measured. The ort form rounds activations to int8 by itself
    # (accuracy_level 4), as does the web form, which moves logits by about 1.
    limit = {"qdq": 1e-3, "ort": 3.0, "web": 3.0}[run.get_modelmeta().custom_metadata_map["dlqat.form"]]
    assert np.abs(logits - expected).max() < limit
    assert (logits.argmax(-1) == expected.argmax(-1)).mean() >= 0.8


def test_onnxruntime_genai(exported: Path) -> None:
    """Chat template, greedy answer, and it stops by itself."""
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(exported))
    tokenizer = genai.Tokenizer(model)
    prompt = tokenizer.apply_chat_template(json.dumps(QUESTION), add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n")
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=200, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(tokenizer.encode(prompt))
    assert generator.get_logits().shape == (1, 1, 49152)
    while not generator.is_done():
        generator.generate_next_token()
    tokens = generator.get_sequence(0)
    assert len(tokens) < 200, "it ran into the limit: EOS did not stop it"
    assert "Paris" in tokenizer.decode(tokens)


def test_transformers_js(exported: Path) -> None:
    """pipeline('text-generation') in Node with its defaults."""
    modules = transformers_js() / "node_modules"
    package = "@huggingface/transformers"
    ask = ASK.replace(f"'{package}'", json.dumps(str(modules / package / "dist" / "transformers.node.mjs")))
    command = ["node", "--input-type=module", "-e", ask, str(exported), json.dumps(QUESTION)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert "Paris" in answer
    assert len(answer) < 250, "it ran into the limit: EOS did not stop it"


def transformers_js() -> Path:
    """The folder of the package that `dlqat-devices --set-up transformers-js` fetched, or skip."""
    if (reason := DEVICES["node-transformers"].available()) is not None:
        pytest.skip(reason)
    return fetched.transformers_js()
