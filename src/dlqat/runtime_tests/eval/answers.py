# SPDX-License-Identifier: Apache-2.0
"""Answers that an app wrote on a phone (apps/shared/evaluate.ts), scored here: no cable, no adb.

The task file is one of conversations (messages.py); the app was asked for the assistant's last answer of each, greedy. Its file
must be about these very bytes and questions. An answer is right if it is the data's, spaces at its ends aside; folded/
in PyTorch answers the same prompts, so the difference is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dlqat import app_file, atomic, json_file, plain_file, source
from dlqat.artifact import Artifact
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval import intervals
from dlqat.runtime_tests.eval.messages import Message, Row
from dlqat.runtime_tests.eval.run import end_tokens
from dlqat.source import chat_template

FORMAT = 1


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model answered."""

    name: str
    program: str
    sha256: str


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer, without end token."""

    text: str
    stop: str


class Answers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The app's file."""

    format: int
    platform: Annotated[str, msgspec.Meta(pattern="^[a-z-]{1,20}$")]
    device: str
    model: About
    tasks: str
    longest: Annotated[int, msgspec.Meta(ge=1)]
    seconds: float
    answers: list[Answer]


def score(artifact: Artifact, reference: Path | None, tasks: Path, answers: Path) -> dict[str, Any]:
    """The content of eval-app-PLATFORM.json. Refusal if the answers are not about this artifact and these tasks."""
    found = json_file.read_as(answers, Answers)
    rows = conversations(tasks)
    _about(found, artifact, tasks, len(rows), answers)
    right = [_same(a.text, want.content) for a, (_, want) in zip(found.answers, rows, strict=True)]
    result = {
        "format": FORMAT,
        "program": {"file": found.model.program, "sha256": found.model.sha256},
        "device": f"app: {found.platform}",
        "phone": found.device,
        "tasks": {"file": str(tasks), "sha256": found.tasks},
        "answers": len(rows),
        "ended": sum(a.stop == "end token" for a in found.answers),
        "seconds": found.seconds,
        "right": asdict(intervals.share(sum(right), len(rows))),
    }
    if reference is None:
        return result
    theirs = _reference(reference, [prompt for prompt, _ in rows], found.longest)
    right_there = [_same(text, want.content) for text, (_, want) in zip(theirs, rows, strict=True)]
    equal = sum(_same(a.text, text) for a, text in zip(found.answers, theirs, strict=True))
    return result | {
        "reference": str(reference),
        "reference_right": asdict(intervals.share(sum(right_there), len(rows))),
        "difference": asdict(intervals.paired(right, right_there)),
        "same_text": equal,
    }


def conversations(path: Path) -> list[tuple[list[Message], Message]]:
    """Of each line, what stands before the assistant's last answer, and that answer: as apps/shared/evaluate.ts reads it."""
    found: list[tuple[list[Message], Message]] = []
    for number, line in enumerate(plain_file.text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        turns = json_file.convert(json_file.parse(line, where), Row, where).messages
        last = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        if last < 1:
            raise Refusal(f"{where}: has no answer of an assistant behind a question")
        found.append((turns[:last], turns[last]))
    if not found:
        raise Refusal(f"{path} has no conversation")
    return found


def _about(found: Answers, artifact: Artifact, tasks: Path, count: int, path: Path) -> None:
    if found.format != FORMAT:
        raise Refusal(f"{path} has format {found.format}, this dlqat reads {FORMAT}; make the app again")
    app = app_file.read(artifact.folder)
    name = app_file.weights(app)
    if {found.model.sha256, app.files[name].sha256} != {atomic.sha256(artifact.folder / name)}:
        raise Refusal(f"{path} is about another {found.model.program} than {artifact.folder}'s; make the app again")
    if found.tasks != atomic.sha256(tasks):
        raise Refusal(
            f"{path} answers another file than {tasks} (its sha256 is another); give the one that the app had"
        )
    if len(found.answers) != count:
        raise Refusal(f"{path} has {len(found.answers)} answers, and {tasks} has {count} conversations")


def _same(a: str, b: str) -> bool:
    return a.strip() == b.strip()


def _reference(folder: Path, prompts: Sequence[list[Message]], longest: int) -> list[str]:
    """Greedy answers of folded/ in PyTorch."""
    import torch

    from dlqat.runtime_tests.reference.model import Reference

    network, tokenizer = Reference(folder).network, source.tokenizer(folder)
    ends = end_tokens(folder, tokenizer)
    found: list[str] = []
    for turns in prompts:
        ids = chat_template.ids(tokenizer, [{"role": t.role, "content": t.content} for t in turns], prompt=True)
        given = torch.tensor([ids])
        with torch.inference_mode():
            out = network.generate(
                given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=longest,
                eos_token_id=ends, pad_token_id=ends[0],
            )  # fmt: skip
        found.append(str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)))
    return found


def words(result: dict[str, Any]) -> str:
    """The result in a line or two."""

    def percent(of: dict[str, float]) -> str:
        return f"{100 * of['value']:.1f} % (95 %: {100 * of['low']:.1f} to {100 * of['high']:.1f})"

    said = f"{result['device']}, {result['answers']} answers: right {percent(result['right'])}"
    if "difference" not in result:
        return said
    return (
        f"{said}\nfolded/: right {percent(result['reference_right'])}; difference {percent(result['difference'])}; "
        f"the same text in {result['same_text']} of {result['answers']}"
    )
