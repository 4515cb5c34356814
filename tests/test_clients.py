# SPDX-License-Identifier: Apache-2.0
"""What clients make of the small files of an artifact: their own loaders are asked, and what is lost is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import artifacts
import models
from dlqat import fetched
from dlqat.devices.all import DEVICES
from dlqat.exporters import asked, generation, loaders, templates
from dlqat.exporters.loaders import CLIENTS
from dlqat.exporters.onnx import clients
from dlqat.folded import disk
from dlqat.refusal import Refusal
from toy_tokenizer import CHATML, byte_tokenizer, sentencepiece_tokenizer

PACKAGES = {"onnxruntime-genai": "onnxruntime_genai", "TextLLMRunner": "pytorch_tokenizers"}
HERE = [
    pytest.param(client, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed"))
    for client, package in PACKAGES.items()
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX artifact with a byte-level tokenizer; its small files are those of every target."""
    folder = tmp_path_factory.mktemp("clients")
    return artifacts.export_model(folder, "qdq", models.fold_model(models.tiny(vocab_size=320)), byte_tokenizer())


def changed(exported: Path, copy: Path, name: str, change: Callable[[Any], None]) -> Path:
    """A copy in which `change` was applied to a JSON file."""
    shutil.copytree(exported, copy, ignore=shutil.ignore_patterns("onnx"))
    content = json.loads((copy / name).read_text())
    change(content)
    (copy / name).write_text(json.dumps(content))
    return copy


def swap(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["."], vocabulary[","] = vocabulary[","], vocabulary["."]


def answer(folder: Path, exported: Path, client: str) -> str:
    """In a process of its own, as at export: loaders of two clients have crashed in one."""
    command = [sys.executable, "-m", "dlqat.exporters.asked", str(folder), str(exported), client]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])["answer"]


@pytest.mark.parametrize("client", HERE)
def test_a_client_that_was_asked_is_ready(exported: Path, client: str) -> None:
    assert answer(exported, exported, client) == "ready"


@pytest.mark.parametrize("client", HERE)
def test_another_tokenizer_is_noticed(exported: Path, tmp_path: Path, client: str) -> None:
    """Negative control: two tokens have changed places."""
    folder = changed(exported, tmp_path / "copy", "tokenizer.json", swap)
    assert answer(folder, exported, client).startswith("wrong: ")


@pytest.mark.parametrize("client", HERE)
def test_a_tokenizer_that_does_not_load(exported: Path, tmp_path: Path, client: str) -> None:
    folder = changed(exported, tmp_path / "copy", "tokenizer.json", lambda c: c.update(model={"type": "New"}))
    assert answer(folder, exported, client).startswith("does not load: ")


@pytest.mark.parametrize("client", HERE)
def test_a_client_without_the_chat_prompts_is_wrong(tmp_path: Path, exported: Path, client: str) -> None:
    """Spaces as marks before each word: genai 0.18 has no token for them, the runner does not load the file as it is."""
    sentencepiece_tokenizer("first").save_pretrained(tmp_path)
    templates.write(tmp_path)
    shutil.copyfile(exported / "genai_config.json", tmp_path / "genai_config.json")
    said = answer(tmp_path, tmp_path, client)
    wanted = (
        "wrong: it has other tokens than the model for the chat prompt"
        if client.startswith("onnx")
        else "does not load"
    )
    assert said.startswith(wanted)


def test_a_config_that_genai_refuses(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    folder = changed(exported, tmp_path / "copy", "genai_config.json", lambda c: c["search"].update(min_p=0.1))
    said = answer(folder, exported, "onnxruntime-genai")
    assert said.startswith("does not load: ")
    assert "min_p" in said


def test_another_template_is_noticed(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    other = CHATML.replace("assistant", "bot")
    folder = changed(exported, tmp_path / "copy", "tokenizer_config.json", lambda c: c.update(chat_template=other))
    assert "writes another chat prompt: 'bot" in answer(folder, exported, "onnxruntime-genai")


def test_who_is_not_here_is_not_verified(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    said = asked.answer(exported, AutoTokenizer.from_pretrained(exported), CLIENTS["onnxruntime-genai"])
    assert said == "not verified: onnxruntime-genai is not installed"


def test_a_process_for_each_client(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was known before stays beside the answer; a loader that takes its process with it is no "ready"."""
    pytest.importorskip("onnxruntime_genai")
    states = {
        "onnxruntime": "ready",
        "onnxruntime-genai": "ready; does not take min_p",
        "transformers.js": "not set up",
    }
    assert asked.ask(exported, exported, states) == states
    monkeypatch.setattr(asked.sys, "executable", "/bin/false")
    found = asked.ask(exported, exported, states)
    assert found["onnxruntime-genai"] == "does not load: its loader ended with code 1; does not take min_p"
    unasked = asked.unasked(states)["onnxruntime-genai"]
    assert unasked == "not verified: its loader was not asked; does not take min_p"


def test_transformers_js_is_asked(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was fetched, or is installed for the folder of the command; elsewhere it is not verified."""
    if (reason := DEVICES["node-transformers"].available()) is not None:
        pytest.skip(reason)
    fetched_to = fetched.transformers_js()
    assert answer(exported, exported, "transformers.js") == "ready"
    monkeypatch.setenv("DLQAT_DEVICES", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert answer(exported, exported, "transformers.js").startswith("not verified: ")
    monkeypatch.chdir(fetched_to)
    assert answer(exported, exported, "transformers.js") == "ready"
    folder = changed(exported, tmp_path / "copy", "tokenizer.json", swap)
    assert answer(folder, exported, "transformers.js").startswith("wrong: ")


SETTINGS = {
    "eos_token_id": 2,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "min_p": 0.1,
    "no_repeat_ngram_size": 3,
    "stop_strings": ["\n\n"],
    "suppress_tokens": [5],
    "typical_p": 1.0,
    "num_beams": 1,
    "penalty_alpha": None,
    "transformers_version": "5.0.0",
}


def test_a_generation_setting_is_carried_or_named() -> None:
    lost = {client: generation.unheard(client, SETTINGS) or "" for client in generation.HEARD}
    named = {client: {k for k in SETTINGS if f" {k} " in f"{text}"} for client, text in lost.items()}
    assert named["onnxruntime-genai"] == {"min_p", "stop_strings", "suppress_tokens"}
    assert named["transformers.js"] == {"top_p", "min_p", "stop_strings"}
    everything = {
        "do_sample",
        "temperature",
        "top_p",
        "min_p",
        "no_repeat_ngram_size",
        "stop_strings",
        "suppress_tokens",
    }
    assert named["TextLLMRunner"] == named["swift-transformers"] == everything
    assert generation.unheard("onnxruntime-genai", {"eos_token_id": 2, "top_p": 1.0}) is None


def test_genai_takes_what_is_carried(tmp_path: Path) -> None:
    """Its own config says it back, and the manifest names the rest."""
    genai = pytest.importorskip("onnxruntime_genai")
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(SETTINGS))
    disk.write(models.fold_model(models.tiny(vocab_size=320)), tmp_path / "folded", files=tmp_path)
    folder = artifacts.export_folded(tmp_path, "qdq")
    options = genai.GeneratorParams(genai.Model(str(folder))).get_search_options()
    assert {k: options[k] for k in ("do_sample", "no_repeat_ngram_size")} == {
        "do_sample": True,
        "no_repeat_ngram_size": 3,
    }
    assert (options["temperature"], options["top_p"]) == pytest.approx((0.6, 0.9))
    state = json.loads((folder / "manifest.json").read_text())["clients"]["onnxruntime-genai"]
    assert state.endswith(
        "does not take from generation_config.json: min_p 0.1, stop_strings ['\\n\\n'], suppress_tokens [5]"
    )


def with_templates(folder: Path, named: dict[str, str]) -> Path:
    """A tokenizer's folder with a list of templates in tokenizer_config.json, as transformers 4 writes it."""
    byte_tokenizer(None).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    listed = [{"name": name, "template": text} for name, text in named.items()]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": listed}))
    return folder


def test_a_list_of_templates(exported: Path, tmp_path: Path) -> None:
    """genai breaks on a list: clients get the default as a text, the others stay where transformers finds them."""
    folder = with_templates(tmp_path, {"default": CHATML, "rag": "{{ messages[0].content }}"})
    assert templates.write(folder) == "uses the default chat template only, not rag"
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == CHATML
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == {"default": CHATML, "rag": "{{ messages[0].content }}"}
    pytest.importorskip("onnxruntime_genai")
    shutil.copyfile(exported / "genai_config.json", folder / "genai_config.json")
    prompt = loaders.genai(folder).prompt
    assert prompt is not None
    assert prompt([{"role": "user", "content": "x"}]) == "<s>user\nx</s>\n<s>assistant\n"


def test_templates_without_a_default(tmp_path: Path) -> None:
    folder = with_templates(tmp_path, {"rag": "x", "tool_use": CHATML})
    assert templates.write(folder) == "finds no chat template: of rag and tool_use none is called default"
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert templates.read(folder) == {"rag": "x", "tool_use": CHATML}


@pytest.mark.parametrize("odd", [5, [5], [{"name": "../../x", "template": "x"}], [{"name": "a", "template": 1}]])
def test_templates_that_are_none(tmp_path: Path, odd: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": odd}))
    with pytest.raises(Refusal, match="neither a text nor a list"):
        templates.read(tmp_path)


def test_more_templates_travel(tmp_path: Path) -> None:
    """additional_chat_templates/ of the base model is in folded/ and in the artifact."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "rag": "x"}
    tokenizer.save_pretrained(tmp_path)
    disk.write(models.fold_model(models.tiny(vocab_size=320)), tmp_path / "folded", files=tmp_path)
    folder = artifacts.export_folded(tmp_path, "qdq")
    for place in (tmp_path / "folded", folder):
        assert (place / "additional_chat_templates" / "rag.jinja").read_text() == "x"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "additional_chat_templates/rag.jinja" in manifest["source"]["folded"]
    assert clients.load(folder / "tokenizer_config.json")["chat_template"] == CHATML
