# SPDX-License-Identifier: Apache-2.0
"""One run of dlqat-eval: both subjects answer the same questions, and the figures become the content of a result."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dlqat import checkpoint, corpus, json_file, plain_file, source
from dlqat.devices.device import Setting
from dlqat.refusal import Refusal
from dlqat.runtime_tests import eval_request, evaluate, messages, report, versions
from dlqat.runtime_tests.eval_request import Request
from dlqat.runtime_tests.fingerprint import fingerprint, of_reference
from dlqat.runtime_tests.scoring import Question
from dlqat.runtime_tests.subject import Subject, Tell

FORMAT = 1
Progress = Callable[[str, str], AbstractContextManager[Tell]]
"""(who answers, what is counted) -> who is told how many are done."""


def run(request: Request, progress: Progress) -> dict[str, Any]:
    """The content of eval-DEVICE.json. DeviceFailure if the device fails; answers given so far are kept."""
    from dlqat.runtime_tests import tasks

    start = time.monotonic()
    if request.reference:
        checkpoint.read(request.reference)  # refused now, not after the artifact has been measured
    chosen = eval_request.setting(request)
    configs = tasks.configs(request.tasks, request.data, request.shots) if request.tasks else None
    if configs:
        tasks.check_answers(configs, eval_request.context(request))
    tokenizer: Any = source.tokenizer(request.reference or request.artifact.folder)
    if request.reference:
        _same_tokens(request.artifact.folder, tokenizer)
    talk = request.messages and request.chat is not False
    if (request.chat or talk) and not isinstance(tokenizer.chat_template, str | dict):
        raise Refusal(f"{tokenizer.name_or_path} has no chat template; use --no-apply-chat-template")
    asked = _text(request, tokenizer)
    ends = end_tokens(request.reference or request.artifact.folder, tokenizer)
    subjects = _subjects(request, chosen)
    windows: list[Any] = []
    answers: list[evaluate.Answers] = []
    seconds: dict[str, float] = {}
    try:
        for subject in subjects:
            before = time.monotonic()
            if configs:  # first: lm_eval may find the documents wrong before a question is asked
                with progress(subject.name, "answers") as subject.tell:
                    answers.append(
                        evaluate.tasks(
                            subject, tokenizer, configs, request.limit, request.shots, ends, chat=bool(request.chat)
                        )
                    )
            if asked:
                with progress(
                    subject.name, "answers of the text" if request.messages else "windows of text"
                ) as subject.tell:
                    windows.append(evaluate.losses(subject, asked))
            seconds[subject.name] = time.monotonic() - before
        about = _about(request, subjects)
        cut = {s.name: s.cut for s in subjects}
        cost = {s.name: {"seconds": seconds[s.name], **s.cost()} for s in subjects}
    finally:
        for subject in subjects:
            subject.close()
    how = {"answers": len(asked), "chat_template": talk} if request.messages else {}
    figures = {
        "setting": str(chosen),
        "seconds": time.monotonic() - start,
        "cost": cost,
        "chat_template": bool(request.chat),
        "cut": cut,
        "tasks": evaluate.compared(*answers) if configs else {},
        "text": {"file": str(request.text), **how, **evaluate.compared_text(*windows)} if asked else None,
        "lm_eval": {s.name: a.own for s, a in zip(subjects, answers, strict=True)} if configs else None,
    }
    return report.plain({**about, **figures})


def _about(request: Request, subjects: list[Subject]) -> dict[str, Any]:
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


def _subjects(request: Request, chosen: Setting) -> list[Subject]:
    """Who answers: the artifact, its reference, the float model."""
    found = [eval_request.artifact(request, chosen)]
    if request.reference:
        found.append(eval_request.reference(request, request.reference))
        found += [eval_request.floating(request, request.base, request.reference)] if request.base else []
    return found


def _text(request: Request, tokenizer: Any) -> list[Question]:
    """What is asked of --text: each answer of conversations, or a text window by window; nothing without one."""
    if request.text is not None and request.messages:
        return messages.questions(tokenizer, request.text, request.tokens, chat=request.chat is not False)
    ids = token_ids(tokenizer, request.text, request.tokens)
    return evaluate.text_questions(ids, eval_request.context(request))


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
