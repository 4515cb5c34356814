# SPDX-License-Identifier: Apache-2.0
"""The iOS app's decoder without Swift: a trace that both sides read.

apps/ios/Tests/DlqatChatTests/trace.json says what the decoder feeds, how long the mask is and which token comes. Here each of
its steps runs on coreml-reference's interpreter, and gives the tokens that a fresh reading gives; `swift test` (not run
here: no Swift) holds Decoder.swift to the same steps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coreml_runs
import models
from dlqat import app_file, atomic
from dlqat import artifact as artifact_module
from dlqat.apps import new
from dlqat.runtime_tests.eval import answers

TRACE = new.HERE / "ios" / "Tests" / "DlqatChatTests" / "trace.json"
CONTEXT, LONGEST = 24, 6
OPENING = [5, 60, 31, 9, 44, 12, 77]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coreml_runs.export(tmp_path_factory.mktemp("ios"), models.fold_model(models.tiny(seed=5)), context=CONTEXT)


def step(text: coreml_runs.Text, ids: Sequence[int], mask: int) -> int:
    """What CoreMLSteps.swift does: the states, a mask of that length, the last row's greedy token."""
    text.length = mask - 1 - len(ids)
    return int(text.step(ids, np.zeros((1, 1, 1, mask), np.float16))[-1].argmax())


def recorded(package: Path, eos: list[int], prompts: Any) -> list[dict[str, Any]]:
    """The trace of Decoder.answer for these prompts; a prompt is made of what was said before."""
    text, cached, turns = coreml_runs.Text(package), list[int](), list[dict[str, Any]]()
    for prompt_of in prompts:
        prompt = prompt_of(turns)
        kept = next(
            (at for at, (a, b) in enumerate(zip(cached, prompt, strict=False)) if a != b), min(len(cached), len(prompt))
        )
        kept = min(kept, len(prompt) - 1)
        cached, feed, tokens, steps, stop = cached[:kept], prompt[kept:], [], [], ""
        while not stop:
            mask, fresh = len(cached) + len(feed) + 1, not cached
            if fresh:
                text = coreml_runs.Text(package)
            token = step(text, feed, mask)
            steps.append({"ids": feed, "mask": mask, "fresh": fresh, "next": token})
            cached = cached + feed
            if token in eos:
                stop = "end token"
                break
            tokens.append(token)
            stop = "length" if len(tokens) >= LONGEST else "context" if len(cached) + 1 > CONTEXT - 1 else ""
            feed = [token]
        turns.append({"prompt": prompt, "longest": LONGEST, "steps": steps, "tokens": tokens, "stop": stop})
    return turns


def whole(artifact: Path) -> dict[str, Any]:
    """Four turns: a first; one that goes on; one that went another way after four tokens; one up to the context's end."""
    package, first = artifact / "model.mlpackage", recorded(artifact / "model.mlpackage", [], [lambda _: OPENING])
    eos = [first[0]["tokens"][3]]  # so that the first answer ends at an end token
    prompts = [
        lambda _: OPENING,
        lambda turns: [*turns[0]["prompt"], *turns[0]["tokens"], *eos, 61, 8],
        lambda _: [*OPENING[:4], 90, 17],
        lambda turns: [*turns[2]["prompt"], *turns[2]["tokens"], *range(100, 122 - len(turns[2]["tokens"]) - 6)],
    ]
    return {"context": CONTEXT, "eos": eos, "turns": recorded(package, eos, prompts)}


def test_the_trace_is_what_the_interpreter_computes(artifact: Path) -> None:
    """Every step of the committed file, in its order, with one set of states until a step is fresh."""
    trace, text = json.loads(TRACE.read_text()), coreml_runs.Text(artifact / "model.mlpackage")
    for turn in trace["turns"]:
        for s in turn["steps"]:
            if s["fresh"]:
                text = coreml_runs.Text(artifact / "model.mlpackage")
            assert step(text, s["ids"], s["mask"]) == s["next"]
    assert trace == whole(artifact)
    assert trace["turns"][0]["stop"] == "end token"
    assert trace["turns"][-1]["stop"] == "context"
    assert sum(s["fresh"] for t in trace["turns"] for s in t["steps"]) == 1  # later turns go on from the cache


def test_going_back_is_a_shorter_mask(artifact: Path) -> None:
    """A turn that went on from the cache has the tokens of a fresh reading."""
    trace = json.loads(TRACE.read_text())
    for turn in trace["turns"]:
        text, feed, at = coreml_runs.Text(artifact / "model.mlpackage"), turn["prompt"], 0
        for wanted in [*turn["tokens"], *(trace["eos"] if turn["stop"] == "end token" else [])]:
            at += len(feed)
            assert step(text, feed, at + 1) == wanted
            feed = [wanted]


def test_a_mask_of_another_length_is_another_answer(artifact: Path) -> None:
    """Negative control: had the decoder counted wrong, the trace would say so."""
    trace, wrong = json.loads(TRACE.read_text()), 0
    text = coreml_runs.Text(artifact / "model.mlpackage")
    for s in trace["turns"][0]["steps"]:
        wrong += step(text, s["ids"], s["mask"] + 1) != s["next"]
    assert wrong


def test_the_app_has_the_model(artifact: Path, tmp_path: Path) -> None:
    """And an answers file of Evaluation.swift's keys is one that dlqat-eval takes."""
    made = new.new("ios", artifact, tmp_path / "app")
    assert (tmp_path / "app" / "App" / "model" / made.program).is_dir()
    assert (tmp_path / "app" / "App" / "model" / app_file.NAME).is_file()
    weights = app_file.weights(made)
    assert weights.endswith("weight.bin")
    source = (tmp_path / "app" / "Sources" / "DlqatChat" / "Evaluation.swift").read_text()
    report = source.partition("struct Report")[2].partition("\n    }")[0]
    keys = re.findall(r"let (\w+)", report)
    assert set(keys) == set(answers.Answers.__struct_fields__)
    row = {"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]}
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps(row))
    content = dict.fromkeys(keys) | {
        "format": 1, "platform": "ios", "device": "x", "longest": 6, "seconds": 1.0, "tasks": atomic.sha256(tasks),
        "model": {"name": made.name, "program": made.program, "sha256": made.files[weights].sha256},
        "answers": [{"text": "B", "stop": "end token"}],
    }  # fmt: skip
    (tmp_path / "answers.json").write_text(json.dumps(content))
    assert (
        answers.score(artifact_module.find(artifact), None, tasks, tmp_path / "answers.json")["tasks"]["tasks"][
            "exact"
        ]["artifact"]["value"]
        == 1
    )
