# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval on a user's conversations: the answers, and nothing else, behind the prompts that apps write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import artifacts
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval import messages
from dlqat.runtime_tests.reference.model import Reference
from dlqat.trainer.data import chat, examples
from test_eval import run
from toy_tokenizer import CHATML, byte_tokenizer, toy_tokenizer

TALKS = [
    [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "It is 4."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "  Yes,\n quite."},
    ],
    [
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ],
]


def write(path: Path, talks: list[Any] = TALKS) -> Path:
    path.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    return path


@pytest.mark.parametrize("make", [toy_tokenizer, byte_tokenizer], ids=["letters", "bytes"])
def test_what_is_measured_is_what_is_learned(tmp_path: Path, make: Any) -> None:
    """Token by token as dlqat-train marks it, by code that shares nothing with it."""
    tokenizer = make()
    found = messages.questions(tokenizer, write(tmp_path / "a.jsonl"), None, chat=True)
    learned: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for talk in TALKS:
        for ids, loss in examples.tokenize(chat.mark(talk, tokenizer, "here"), tokenizer):
            begins = [i for i in range(1, len(ids)) if loss[i] and not loss[i - 1]]
            ends = [next((j for j in range(i, len(ids)) if not loss[j]), len(ids)) for i in begins]
            learned += [(tuple(ids[:i]), tuple(ids[i:j])) for i, j in zip(begins, ends, strict=True)]
    assert [(q.context, q.continuation) for q in found] == learned
    assert len(messages.questions(tokenizer, tmp_path / "a.jsonl", 4, chat=True)) == 2  # of the first conversation


def test_without_the_template_contents_follow_each_other(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer(None)
    found = messages.questions(tokenizer, write(tmp_path / "a.jsonl"), None, chat=False)
    assert [tokenizer.decode(q.context) for q in found] == [
        "<s>What is 2+2?\n",
        "<s>What is 2+2?\nIt is 4.\nSure?\n",
        "<s>Hello\nHi\n",
    ]
    assert [tokenizer.decode(q.continuation) for q in found] == ["It is 4.", "  Yes,\n quite.", "Ho"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "x"}', "a.jsonl:2: Object missing required field messages"),
        ('{"messages": [{"role": "user", "content": 3}]}', r"a.jsonl:2: Expected str, got int at \$.messages"),
        ("{", "a.jsonl:2 is not JSON"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "a.jsonl has no answer of an assistant to measure"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"\n{content}\n")
    with pytest.raises(Refusal, match=says):
        messages.questions(toy_tokenizer(), tmp_path / "a.jsonl", None, chat=True)
    write(tmp_path / "a.jsonl")
    with pytest.raises(Refusal, match="a.jsonl:1: the chat template does not write message 2 behind its own prompt"):
        messages.questions(toy_tokenizer(CHATML.replace("assistant\n", "bot\n")), tmp_path / "a.jsonl", None, chat=True)


def test_the_command_takes_the_template_by_itself(tmp_path: Path) -> None:
    artifact = artifacts.export(tmp_path / "model", "ort", "llama-tied")
    found: list[dict[str, Any]] = []
    for number, more in enumerate([(), ("--no-apply-chat-template",)]):
        said = run(artifact, "--text", write(tmp_path / "a.jsonl"), "--output", tmp_path / str(number), *more)
        found.append(json.loads((tmp_path / str(number) / "eval-host-ort.json").read_text()))
        assert found[-1]["text"]["answers"] == 3 and "perplexity of 3" in said
    assert [f["text"]["chat_template"] for f in found] == [True, False]
    assert ["--no-apply-chat-template" in f["command"] for f in found] == [False, True]
    network = Reference(artifact.parent / "folded").network
    total, tokens = 0.0, 0
    for q in messages.questions(toy_tokenizer(), tmp_path / "a.jsonl", None, chat=True):
        with torch.inference_mode():
            rows = network(torch.tensor([[*q.context, *q.continuation]])).logits[0].double().log_softmax(-1)
        total -= sum(float(rows[len(q.context) - 1 + i, t]) for i, t in enumerate(q.continuation))
        tokens += len(q.continuation)
    assert found[0]["text"]["tokens"] == tokens
    assert found[0]["text"]["artifact"]["nll"] == pytest.approx(total / tokens, abs=1e-5)


def test_a_model_without_a_template_says_how_to_go_on(tmp_path: Path) -> None:
    model = artifacts.models.fold_model(artifacts.models.tiny("llama-tied"))
    artifact = artifacts.export_model(tmp_path / "model", "ort", model, toy_tokenizer(None))
    said = run(artifact, "--text", write(tmp_path / "a.jsonl"), "--output", tmp_path / "x", code=2)
    assert "has no chat template; use --no-apply-chat-template" in said
