# SPDX-License-Identifier: Apache-2.0
"""One run of dlqat-eval: both subjects answer the same questions, and the figures become the content of a result."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlqat import corpus, json_file, plain_file, source
from dlqat.devices.device import Setting
from dlqat.folded import disk
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval import measure, messages, prompts
from dlqat.runtime_tests.eval import request as eval_request
from dlqat.runtime_tests.eval.fingerprint import fingerprint, of_reference
from dlqat.runtime_tests.eval.journaled_model import JournaledModel, Tell, room
from dlqat.runtime_tests.eval.request import EvalRequest
from dlqat.runtime_tests.eval.scoring import Question
from dlqat.runtime_tests.report import record, versions

FORMAT = 1
Progress = Callable[[str, str], AbstractContextManager[Tell]]
"""(who answers, what is counted) -> who is told how many are done."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """The questions of a run, and what is needed to ask them."""

    tokenizer: Any
    ends: list[int]
    """Every token that ends an answer."""
    tasks: Any
    """What tasks.configs returns; None without tasks."""
    prompts: list[prompts.Case]
    text: list[Question]


@dataclass(eq=False)
class _Answered:
    """What the subjects said so far, in their order."""

    tasks: list[measure.Answers] = field(default_factory=list[measure.Answers])
    prompts: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    text: list[Any] = field(default_factory=list[Any])
    seconds: dict[str, float] = field(default_factory=dict[str, float])


def run(request: EvalRequest, progress: Progress) -> dict[str, Any]:
    """The content of eval-DEVICE.json, and under "prompts" what was written to each of them (None without them).
    DeviceFailure if the device fails; answers given so far are kept."""
    start = time.monotonic()
    if request.reference:
        disk.read(request.reference)  # refused now, not after the artifact has been measured
    chosen = eval_request.setting(request)
    asked, found = _questions(request), _Answered()
    subjects = _subjects(request, chosen)
    try:
        for subject in subjects:
            before = time.monotonic()
            _ask(request, subject, asked, found, progress)
            found.seconds[subject.name] = time.monotonic() - before
        about = _about(request, subjects)
        cut = {s.name: s.cut for s in subjects}
        cost = {s.name: {"seconds": found.seconds[s.name], **s.cost()} for s in subjects}
    finally:
        for subject in subjects:
            subject.close()
    talk = {"answers": len(asked.text), "chat_template": request.chat is not False} if request.messages else {}
    figures = {
        "setting": str(chosen),
        "seconds": time.monotonic() - start,
        "cost": cost,
        "chat_template": bool(request.chat),
        "cut": cut,
        "tasks": (measure.compared(*found.tasks) if found.tasks else {})
        | (prompts.compared(request.prompts.stem, asked.prompts, found.prompts) if request.prompts else {}),
        "prompts": prompts.rows(asked.prompts, found.prompts) if asked.prompts else None,
        "text": {"file": str(request.text), **talk, **measure.compared_text(*found.text)} if asked.text else None,
        "lm_eval": {s.name: a.own for s, a in zip(subjects, found.tasks, strict=True)} if found.tasks else None,
    }
    return record.plain({**about, **figures})


def _questions(request: EvalRequest) -> _Asked:
    """Read everything that is asked. Refusal of what cannot be, before a question is."""
    from dlqat.runtime_tests.eval import tasks

    configs = tasks.configs(request.tasks, request.data, request.shots) if request.tasks else None
    if configs:
        tasks.check_answers(configs, eval_request.context(request))
    tokenizer: Any = source.tokenizer(request.reference or request.artifact.folder)
    if request.reference:
        _same_tokens(request.artifact.folder, tokenizer)
    talk = request.messages and request.chat is not False
    if (request.chat or talk) and not isinstance(tokenizer.chat_template, str | dict):
        raise Refusal(f"{tokenizer.name_or_path} has no chat template; use --no-apply-chat-template")
    ends = end_tokens(request.reference or request.artifact.folder, tokenizer)
    return _Asked(tokenizer, ends, configs, _cases(request, tokenizer), _text(request, tokenizer))


def _ask(request: EvalRequest, subject: JournaledModel, asked: _Asked, found: _Answered, progress: Progress) -> None:
    """All questions to one subject."""
    chat = bool(request.chat)
    if asked.tasks:  # first: lm_eval may find the documents wrong before a question is asked
        with progress(subject.name, "answers") as subject.tell:
            own = measure.tasks(
                subject, asked.tokenizer, asked.tasks, request.limit, request.shots, asked.ends, chat=chat
            )
            found.tasks.append(own)
    if asked.prompts:
        with progress(subject.name, "answers to prompts") as subject.tell:
            most = request.longest or prompts.LONGEST
            found.prompts[subject.name] = prompts.answers(subject, asked.tokenizer, asked.prompts, asked.ends, most)
    if asked.text:
        with progress(subject.name, "answers of the text" if request.messages else "windows of text") as subject.tell:
            found.text.append(measure.losses(subject, asked.text))


def _about(request: EvalRequest, subjects: list[JournaledModel]) -> dict[str, Any]:
    """What was measured, where, and how to measure it again."""
    return {
        "format": FORMAT,
        "artifact": str(request.artifact.folder),
        "program": {"file": request.artifact.program.name, "sha256": fingerprint(request.artifact)},
        "reference": str(request.reference) if request.reference else None,
        "float": request.base.text if request.base else None,
        "reference_sha256": of_reference(request.reference) if request.reference else None,
        "device": request.device.name,
        "command": request.command,
        "facts": {subject.name: dict(subject.facts()) for subject in subjects},
        "versions": {"python": platform.python_version()} | versions.installed(),
    }


def _subjects(request: EvalRequest, chosen: Setting) -> list[JournaledModel]:
    """Who answers: the artifact, its reference, the float model."""
    found = [eval_request.artifact(request, chosen)]
    if request.reference:
        found.append(eval_request.reference(request, request.reference))
        found += [eval_request.floating(request, request.base, request.reference)] if request.base else []
    return found


def _text(request: EvalRequest, tokenizer: Any) -> list[Question]:
    """What is asked of --text: each answer of conversations, or a text window by window; nothing without one."""
    if request.text is not None and request.messages:
        return messages.questions(tokenizer, request.text, request.tokens, chat=request.chat is not False)
    ids = token_ids(tokenizer, request.text, request.tokens)
    return measure.text_questions(ids, eval_request.context(request))


def _cases(request: EvalRequest, tokenizer: Any) -> list[prompts.Case]:
    """The user's own test set; empty without one. Refusal if an answer leaves no room for a prompt."""
    if request.prompts is None:
        return []
    if request.prompts.stem in request.tasks:
        raise Refusal(f"{request.prompts} is called as a task is; give it another name")
    found = prompts.read(request.prompts, tokenizer, request.limit, chat=request.chat)
    room(eval_request.context(request), request.longest or prompts.LONGEST)
    return found


def _same_tokens(folder: Path, tokenizer: Any) -> None:
    """Refusal if the artifact's own tokenizer, which apps use, has other tokens than the reference's: another model would be
    measured than the one that ships. Decomposed letters may differ (ExecuTorch's runners cannot compose them)."""
    if not (folder / "tokenizer.json").is_file():
        return
    own: Any = source.tokenizer(folder)
    texts = dict(corpus.TEXTS) | {"chat prompts": "".join(corpus.prompts(tokenizer))}
    ids = [{k: t(text, add_special_tokens=False)["input_ids"] for k, text in texts.items()} for t in (own, tokenizer)]
    if other := [kind for kind in texts if ids[0][kind] != ids[1][kind]]:
        raise Refusal(
            f"{folder}: its tokenizer has other tokens than the reference's for {', '.join(other)}; export again"
        )


def end_tokens(folder: Path, tokenizer: Any) -> list[int]:
    """Every token that ends an answer, as generation_config.json or config.json says; the tokenizer's, if they do not."""
    for name in ("generation_config.json", "config.json"):
        found: Any = json_file.read_if_there(folder / name).get("eos_token_id")
        if found is not None:
            return [int(token) for token in (found if isinstance(found, list) else [found])]
    return [int(tokenizer.eos_token_id)]


def token_ids(tokenizer: Any, text: Path | None, most: int | None) -> list[int]:
    """The first `most` tokens of a text; none without a text. Refusal if there is nothing to predict."""
    if text is None:
        return []
    content = plain_file.text(text, "; give a text file to --text")
    ids = list(tokenizer(content, verbose=False)["input_ids"])[:most]
    if len(ids) < 2:
        raise Refusal(f"{text} has {len(ids)} tokens; perplexity needs two")
    return ids
