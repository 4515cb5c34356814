# SPDX-License-Identifier: Apache-2.0
"""Conversations: the model's own chat template writes the text; loss is on what the assistant says.

Where the template marks it ({% generation %}), its marks are taken. Otherwise, for every assistant turn,

    prompt = template(messages before it, with the generation prompt)
    whole  = template(messages up to it)

and whole minus prompt is the answer, if prompt is a prefix of whole (a template for which it is not is
refused: what a model is asked at inference would not be what it was trained on). The answer ends with
the end-of-turn token; the newline that many templates write after it is never generated, so never learned. An answer that
the data switch off ("weight": 0, "train": false) is read and not learned; neither is one that begins the conversation.

Some templates write a turn otherwise once others follow (Qwen3 drops the thinking of old turns). Then
a conversation becomes one example per answer, each exactly as it stands when that answer is due.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlqat.refusal import Refusal
from dlqat.source import chat_template
from dlqat.trainer import forms
from dlqat.trainer.examples import Marked, Span
from dlqat.trainer.forms import Message

DAYS = date(2024, 1, 1).toordinal(), date(2031, 1, 1).toordinal()
"""From which the day of a conversation is drawn."""


def mark(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str, tools: Any = None
) -> list[Marked]:
    """The examples in one conversation; none if the assistant says nothing in it. `where` names the row."""
    own = _template(tokenizer, where, tools)
    _check(messages, where, own)
    if messages[0]["role"] == "assistant":  # a greeting: there is no prompt behind which it would be asked for
        messages = [{**messages[0], "weight": 0}, *messages[1:]]
    template, day = _dated(own, messages)
    if re.search(r"\bstrftime_now\s*\(", template):
        raise Refusal(
            f"{where}: the chat template computes the format in which it asks for today's date, so no run could be resumed "
            "after midnight; write the format into the template"
        )
    try:
        if re.search(r"\{%-?\s*generation\s*-?%\}", template):
            found = chat_template.render(
                tokenizer, messages, tools=tools, template=template, marked=True, variables=day
            )
            return [Marked(found.text, _wanted(found.spans, messages), complete=True)]
        return _marked_by_prefix(messages, tokenizer, template, tools, day)
    except Refusal as reason:
        raise Refusal(f"{where}: {reason}") from reason


def _template(tokenizer: PreTrainedTokenizerBase, where: str, tools: Any) -> str:
    """The one of the tokenizer's templates that transformers would use."""
    found = tokenizer.chat_template
    if found is None:
        raise Refusal(
            f"{where}: messages need a chat template, and this model's tokenizer has none: give --chat-template FILE"
        )
    if isinstance(found, dict) and "default" not in found and not (tools and "tool_use" in found):
        names = " and ".join(sorted(found))
        raise Refusal(
            f"{where}: of this model's chat templates ({names}) none is called default; copy the one that you want to "
            "chat_template.jinja in the model's folder"
        )
    return tokenizer.get_chat_template(tools=tools)


def _dated(template: str, messages: Sequence[Message]) -> tuple[str, dict[str, str]]:
    """The template with names where it asks for today's date, and their values.

    Each conversation has a day of its own, drawn by its text: with the day of the run, a run could not go on after midnight,
    and any one day would be learned. transformers hands over texts only, no function in strftime_now's place."""
    said = json.dumps(messages, sort_keys=True, default=str).encode("utf-8", "replace")
    number = int.from_bytes(hashlib.sha256(said).digest()[:8])
    day = datetime.fromordinal(DAYS[0] + number % (DAYS[1] - DAYS[0]))
    values = {"date_string": day.strftime("%d %b %Y")}  # Llama 3's templates take it from outside

    def name(call: re.Match[str]) -> str:
        values[found := f"dlqat_date_{len(values)}"] = day.strftime(call[2])
        return found

    return re.sub(r"""\bstrftime_now\(\s*(['"])(.{0,99}?)\1\s*\)""", name, template), values


def _marked_by_prefix(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    tools: Any,
    day: dict[str, str],
) -> list[Marked]:
    def render(until: int, prompt: bool) -> str:
        given = messages[:until]
        return chat_template.render(tokenizer, given, tools=tools, template=template, prompt=prompt, variables=day).text

    closers = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    turns: list[Marked] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or _off(message):
            continue
        prompt, whole = render(i, True), render(i + 1, False)
        if not whole.startswith(prompt):
            raise Refusal(f"the chat template does not write message {i + 1} behind its own prompt")
        trimmed = whole.rstrip()
        end = len(trimmed) if trimmed.endswith(closers) else len(whole)
        turns.append(Marked(whole, ((len(prompt), end),), complete=True))
    if not turns:
        return []
    full = render(len(messages), False)
    if all(full.startswith(turn.text) for turn in turns):
        return [Marked(full, tuple(turn.spans[0] for turn in turns), complete=True)]
    return turns


SWITCHES = "weight", "train", "loss"
"""Keys with which data sets switch an answer off: 0 or false (OpenAI's, axolotl's and ms-swift's names)."""


def _off(message: Message) -> bool:
    return any(message.get(key) in (0, "0", "false", "False") for key in SWITCHES)


def _wanted(spans: Sequence[Span], messages: Sequence[Message]) -> tuple[Span, ...]:
    """The spans of a template's marks without those of answers that are switched off."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(map(_off, answers)):
        return tuple(spans)
    if len(spans) != len(answers):
        raise Refusal(
            f"answers are switched off, and the chat template marks {len(spans)} spans for {len(answers)} answers, so that "
            "it is not known which; leave those answers out"
        )
    return tuple(span for span, answer in zip(spans, answers, strict=True) if not _off(answer))


ROLES = "system", "user", "assistant", "tool"


def _check(messages: Sequence[Message], where: str, template: str) -> None:
    """Refusal of a role that the template does not know: most templates drop such a message without a word."""
    for role in {message["role"]: None for message in messages}:
        if role not in ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
            raise Refusal(
                f"{where}: the role {role!r} is not known; known are {', '.join(ROLES)}, ShareGPT's {', '.join(forms.ROLES)}, "
                "and what the chat template names"
            )
