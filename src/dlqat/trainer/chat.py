# SPDX-License-Identifier: Apache-2.0
"""Conversations: the model's own chat template writes the text; loss is on what the assistant says.

Where the template marks it ({% generation %}), its marks are taken. Otherwise, for every assistant turn,

    prompt = template(messages before it, with the generation prompt)
    whole  = template(messages up to it)

and whole minus prompt is the answer, if prompt is a prefix of whole (a template for which it is not is
refused: what a model is asked at inference would not be what it was trained on). The answer ends with
the end-of-turn token; the newline that many templates write after it is never generated, so never learned.

Some templates write a turn otherwise once others follow (Qwen3 drops the thinking of old turns). Then
a conversation becomes one example per answer, each exactly as it stands when that answer is due.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlqat.refusal import Refusal
from dlqat.source import chat_template
from dlqat.trainer.examples import Marked

Message = dict[str, Any]

FIXED: Any = {"date_string": "26 Jul 2024"}
"""Llama 3's templates write today's date unless one is given; a run resumed tomorrow must see the same text."""


def mark(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str, tools: Any = None
) -> list[Marked]:
    """The examples in one conversation; none if the assistant says nothing in it. `where` names the row."""
    _check(messages, where)
    template = tokenizer.chat_template
    if template is None:
        raise Refusal(f"{where}: messages need a chat template, and this model's tokenizer has none")
    try:
        if isinstance(template, str) and re.search(r"\{%-?\s*generation\s*-?%\}", template):
            return _marked_by_template(messages, tokenizer, tools)
        return _marked_by_prefix(messages, tokenizer, tools)
    except Refusal as reason:
        raise Refusal(f"{where}: {reason}") from reason


def _marked_by_template(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: Any) -> list[Marked]:
    found = chat_template.render(tokenizer, messages, tools=tools, marked=True, variables=FIXED)
    return [Marked(found.text, found.spans, complete=True)]


def _marked_by_prefix(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: Any) -> list[Marked]:
    def render(until: int, prompt: bool) -> str:
        return chat_template.render(tokenizer, messages[:until], tools=tools, prompt=prompt, variables=FIXED).text

    closers = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    turns: list[Marked] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
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


def _check(messages: Any, where: str) -> None:
    """Refusal unless `messages` is a list of {"role": ..., "content": ...} that does not begin with an answer."""
    shape = '"messages" must be a list of {"role": "...", "content": "..."}'
    if not isinstance(messages, (list, tuple)) or not messages:
        raise Refusal(f"{where}: {shape}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refusal(f"{where}: {shape}, found {str(message)[:60]}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise Refusal(f"{where}: {shape}; the content of role {message['role']!r} is no text")
    if messages[0]["role"] == "assistant":
        raise Refusal(f"{where}: a conversation cannot begin with the assistant")
