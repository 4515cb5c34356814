# SPDX-License-Identifier: Apache-2.0
"""The forms that a row of data may have. Each becomes a text with what is learned of it, or a conversation.

    text                                  all of it is learned
    prompt, completion                    texts: the completion is learned
    prompt, completion                    lists of messages: the answers in the completion are learned
    messages [, tools] [, system]         every answer is learned
    conversations [, tools] [, system]    ShareGPT's: {"from": "human", "value": "..."}
    instruction [, input], output         Alpaca's: one question and its answer, as a conversation

The first of messages, conversations, completion, output and text that a row has decides; other columns are passed over.
Lists may be given as JSON text (columns of .csv and .parquet), contents as parts of text. What is none of these is refused,
because it would be trained as something else than it means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from dlqat import json_file
from dlqat.refusal import Refusal
from dlqat.trainer.data.examples import Marked

Message = dict[str, Any]
Fields = Mapping[str, Any]

ACCEPTED = '{"text"}, {"prompt", "completion"}, {"messages"}, {"conversations"} (ShareGPT) or {"instruction", "output"} (Alpaca)'
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
"""ShareGPT's names of roles."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as chat templates take them."""

    messages: list[Message]
    tools: Any = None


def read(row: Any, where: str) -> Marked | Conversation:
    """What a row holds. Refusal says what was found and what is known."""
    if not isinstance(row, Mapping):
        raise Refusal(f"{where}: a row is an object {ACCEPTED}, found {_short(row)}")
    fields = cast("Fields", row)
    for key, form in _FORMS.items():
        if fields.get(key) is not None:
            return form(fields, where)
    raise Refusal(f"{where}: a row is {ACCEPTED}, found the keys {', '.join(map(str, fields)) or '(none)'}")


def _text(fields: Fields, where: str) -> Marked:
    text = _string(fields, "text", where)
    return Marked(text, ((0, len(text)),))


def _completion(fields: Fields, where: str) -> Marked | Conversation:
    if isinstance(fields.get("prompt"), str) and isinstance(fields["completion"], str):
        prompt, whole = fields["prompt"], fields["prompt"] + fields["completion"]
        return Marked(whole, ((len(prompt), len(whole)),))
    if isinstance(fields.get("prompt"), str | None) or isinstance(fields["completion"], str):
        raise Refusal(
            f'{where}: "prompt" must be a text and "completion", too, or both lists of messages; found '
            f"{_short(fields.get('prompt'))} and {_short(fields['completion'])}"
        )
    before = [{**m, "weight": 0} for m in messages(fields["prompt"], "prompt", where)]
    return Conversation([*before, *messages(fields["completion"], "completion", where)], _tools(fields, where))


def _messages(fields: Fields, where: str) -> Conversation:
    key = "messages" if fields.get("messages") is not None else "conversations"
    found = messages(fields[key], key, where)
    return Conversation(_with_system(fields, found, where), _tools(fields, where))


def _alpaca(fields: Fields, where: str) -> Conversation:
    question = _string(fields, "instruction", where)
    if fields.get("input"):
        question += "\n\n" + _string(fields, "input", where)
    turns = [*_history(fields, where), (question, _string(fields, "output", where))]
    found = [{"role": role, "content": text} for turn in turns for role, text in zip(_TURN, turn, strict=True)]
    return Conversation(_with_system(fields, found, where))


_TURN = "user", "assistant"


def _history(fields: Fields, where: str) -> list[tuple[str, str]]:
    found = _parsed(fields.get("history") or [], "history", where)
    try:
        return msgspec.convert(found, list[tuple[str, str]])
    except ValueError as error:  # also of half a character, which JSON may hold
        raise Refusal(f'{where}: "history" must be a list of pairs of texts, found {_short(found)}') from error


_FORMS: Mapping[str, Callable[[Fields, str], Marked | Conversation]] = {
    "messages": _messages,
    "conversations": _messages,
    "completion": _completion,
    "output": _alpaca,
    "text": _text,
}


def messages(value: Any, key: str, where: str) -> list[Message]:
    """Messages with role and content, whatever they are called and however they are written."""
    shape = f'"{key}" must be a list of {{"role": "...", "content": "..."}}'
    value = _parsed(value, key, where)
    if not isinstance(value, list | tuple) or not value:
        raise Refusal(f"{where}: {shape}, found {_short(value)}")
    return [_message(one, shape, where) for one in cast("list[Any]", value)]


def _message(given: Any, shape: str, where: str) -> Message:
    if not isinstance(given, Mapping):
        raise Refusal(f"{where}: {shape}, found {_short(given)}")
    # A column of .parquet has every key in every message, most of them empty; a template asks whether one is there.
    found = {k: v for k, v in cast("Fields", given).items() if v is not None}
    role, content = found.pop("from", None), found.pop("value", None)
    role, content = found.get("role", role), found.get("content", content)
    if not isinstance(role, str):
        raise Refusal(f"{where}: {shape}, found {_short(given)}")
    calls = _parsed(found.get("tool_calls"), "tool_calls", where)
    if isinstance(content, list | tuple):
        content = "".join(_part(one, role, where) for one in cast("list[Any]", content))
    if not isinstance(content, str) and not (content is None and calls):
        raise Refusal(f"{where}: {shape}; the content of role {role!r} is no text")
    with_calls = {"tool_calls": [_call(one, where) for one in calls]} if isinstance(calls, list) and calls else {}
    return {**found, "role": ROLES.get(role, role), "content": content, **with_calls}


def _part(part: Any, role: str, where: str) -> str:
    fields = cast("Fields", part) if isinstance(part, Mapping) else {}
    if fields.get("type") == "text" and isinstance(fields.get("text"), str):
        return fields["text"]
    raise Refusal(
        f'{where}: the content of role {role!r} has a part that is no {{"type": "text", "text": "..."}}: {_short(part)}'
    )


def _call(call: Any, where: str) -> Any:
    """A call of a tool; its arguments as an object, which templates write as JSON (OpenAI's files have them as text)."""
    function: Any = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": _parsed(function["arguments"], "arguments", where)}}


def _tools(fields: Fields, where: str) -> Any:
    found = _parsed(fields.get("tools") or None, "tools", where)
    if found is not None and not isinstance(found, list):
        raise Refusal(f'{where}: "tools" must be a list, found {_short(found)}')
    return found or None


def _with_system(fields: Fields, found: list[Message], where: str) -> list[Message]:
    if not fields.get("system") or found[0]["role"] == "system":
        return found
    return [{"role": "system", "content": _string(fields, "system", where)}, *found]


def _parsed(value: Any, key: str, where: str) -> Any:
    """A value that may be given as JSON text."""
    return json_file.parse(value, f'{where}: "{key}", which is given as text,') if isinstance(value, str) else value


def _string(fields: Fields, key: str, where: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise Refusal(f'{where}: "{key}" must be a text, found {_short(value)}')
    return value


def _short(value: Any) -> str:
    return str(value)[:60]
