# SPDX-License-Identifier: Apache-2.0
"""A user's conversations as questions: how likely is each answer of the assistant after all that stands before it?

A file of JSON lines, {"messages": [{"role": "user", "content": "..."}, ...]}. Prompts are written by the model's chat template, as
apps write them and the model was trained; without it (--no-apply-chat-template) contents follow each other, a line each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dlqat import json_file, plain_file
from dlqat.refusal import Refusal
from dlqat.runtime_tests.scoring import Question
from dlqat.source import chat_template


class Message(msgspec.Struct, frozen=True):
    """One turn."""

    role: str
    content: str


class Row(msgspec.Struct, frozen=True):
    """One conversation."""

    messages: list[Message]


def questions(tokenizer: Any, path: Path, most: int | None, *, chat: bool) -> list[Question]:
    """The answers of a file, until they have `most` tokens. Refusal names file and line, or says that there are none."""
    found: list[Question] = []
    for number, line in enumerate(plain_file.text(path).splitlines(), 1):
        if not line.strip() or (most is not None and sum(len(q.continuation) for q in found) >= most):
            continue
        where = f"{path}:{number}"
        turns = json_file.convert(json_file.parse(line, where), Row, where).messages
        try:
            for prompt, whole in _answers(tokenizer, turns, chat=chat):
                found += _question(tokenizer, prompt, whole, chat=chat)
        except (Refusal, ValueError) as reason:  # ValueError: of several templates none is the default
            raise Refusal(f"{where}: {reason}") from reason
    if not found:
        raise Refusal(f"{path} has no answer of an assistant to measure")
    return found


def _answers(tokenizer: Any, turns: Sequence[Message], *, chat: bool) -> Iterator[tuple[str, str]]:
    """(what stands before it, the same with the answer) of every answer that something stands before."""
    given: list[Mapping[str, str]] = [{"role": turn.role, "content": turn.content} for turn in turns]
    closers = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    for at, turn in enumerate(turns):
        if turn.role != "assistant" or at == 0:
            continue
        if not chat:
            prompt = "".join(f"{before.content}\n" for before in turns[:at])
            yield prompt, prompt + turn.content
            continue
        prompt = chat_template.render(tokenizer, given[:at], prompt=True).text
        whole = chat_template.render(tokenizer, given[: at + 1]).text
        if not whole.startswith(prompt):
            raise Refusal(f"the chat template does not write message {at + 1} behind its own prompt")
        trimmed = whole.rstrip()  # the line end after the last token is never generated
        yield prompt, trimmed if trimmed.endswith(closers) else whole


def _question(tokenizer: Any, prompt: str, whole: str, *, chat: bool) -> list[Question]:
    """A token that begins before the answer is given, as in training; nothing if none is left."""
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    begins = [0, *(end for _, end in encoded["offset_mapping"])]
    given = sum(
        min(begin, before) < len(prompt) for (begin, _), before in zip(encoded["offset_mapping"], begins, strict=False)
    )
    ids = [int(token) for token in encoded["input_ids"]]
    first = [] if chat or tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    context, answer = (*first, *ids[:given]), tuple(ids[given:])
    return [Question(context, answer)] if context and answer else []
