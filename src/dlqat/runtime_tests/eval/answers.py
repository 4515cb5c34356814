# SPDX-License-Identifier: Apache-2.0
"""Answers that an app wrote on a phone (apps/shared/evaluate.ts), scored here: no cable, no adb.

The task file is a test set of conversations (prompts.py), and the app was asked for the last answer of each, greedy. Its file must
be about these very bytes and questions. folded/ in PyTorch answers the same prompts, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dlqat import app_file, atomic, json_file, source
from dlqat.artifact import Artifact
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval import prompts
from dlqat.runtime_tests.eval.prompts import Case
from dlqat.runtime_tests.eval.run import end_tokens
from dlqat.runtime_tests.eval.scoring import greedy_text

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
    """The content of eval-app-PLATFORM.json, as run.run gives it. Refusal if the answers are not about this artifact and
    these tasks."""
    found = json_file.read_as(answers, Answers)
    tokenizer: Any = source.tokenizer(reference or artifact.folder)
    cases = prompts.read(tasks, tokenizer, None, chat=None)
    if odd := next((case.where for case in cases if not case.talk), None):
        raise Refusal(f"{odd}: apps are asked conversations that end with the assistant's answer")
    _about(found, artifact, tasks, len(cases), answers)
    texts = {f"app-{found.platform}": [answer.text for answer in found.answers]}
    if reference is not None:
        texts["reference"] = _reference(reference, cases, found.longest)
    first = next(iter(texts))
    return {
        "format": FORMAT,
        "program": {"file": found.model.program, "sha256": found.model.sha256},
        "reference": str(reference) if reference else None,
        "device": first,
        "phone": found.device,
        "setting": "as the app runs it",
        "seconds": found.seconds,
        "ended": sum(answer.stop == "end token" for answer in found.answers),
        "same_text": sum(
            a.strip() == b.strip() for a, b in zip(texts[first], texts.get("reference", ()), strict=False)
        ),
        "tasks": prompts.compared(tasks.stem, cases, texts),
        "prompts": prompts.rows(cases, texts),
        "text": None,
        "lm_eval": None,
    }


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
        raise Refusal(f"{path} has {len(found.answers)} answers, and {tasks} has {count} prompts")


def _reference(folder: Path, cases: Sequence[Case], longest: int) -> list[str]:
    """Greedy answers of folded/ in PyTorch."""
    from dlqat.runtime_tests.reference.model import Reference
    from dlqat.runtime_tests.reference.torch_session import TorchSession

    session, tokenizer = TorchSession(Reference(folder).network), source.tokenizer(folder)
    ends = end_tokens(folder, tokenizer)
    ids = (greedy_text(session, case.ids, ends, longest, lambda _: False) for case in cases)
    return [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in ids]
