# SPDX-License-Identifier: Apache-2.0
"""A user's own test set: prompts, each with the answer that is wanted. The model writes, and what it wrote is judged.

A file of JSON lines in the forms that dlqat-train learns from, so a part of the data that was held back can be asked:

    {"messages": [..., {"role": "assistant", "content": "wanted"}]}    asked for the last message
    {"messages": [..., {"role": "user", ...}], "answer": "wanted"}
    {"prompt": "...", "completion": "wanted"}                          or "answer"

An answer may be a JSON value. "match" says how a row is judged; without it JSON is compared as JSON, a number as a number, and
a text as a text:

    exact       the same text, but for spaces around it
    json        the whole text is JSON and the same value: order of keys and spaces do not count
    contains    the wanted text stands in it
    number      the last number in it is the wanted one

Messages go through the model's chat template, prompts as they are. Answers are greedy and end at any of the model's end tokens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from dlqat import json_file, plain_file
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval import measure
from dlqat.runtime_tests.eval.journaled_model import JournaledModel
from dlqat.runtime_tests.eval.measure import Samples
from dlqat.runtime_tests.eval.messages import Message
from dlqat.source import chat_template

Match = Literal["exact", "json", "contains", "number"]
LONGEST = 256
"""Tokens of an answer, unless it is said."""
VALID = "valid_json"
"""The metric beside "json": the text is JSON at all."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Row(msgspec.Struct, frozen=True):
    """One line of the file."""

    messages: list[Message] | None = None
    prompt: str | None = None
    answer: Any = None
    completion: str | None = None
    match: Match | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt. `where` names its line."""

    where: str
    text: str
    ids: tuple[int, ...]
    wanted: Any
    match: Match
    talk: bool = False
    """Whether it is a conversation whose last message is the wanted answer: what apps ask (apps/shared/evaluate.ts)."""


def read(path: Path, tokenizer: Any, limit: int | None, *, chat: bool | None) -> list[Case]:
    """The first `limit` prompts of a file. Refusal names file and line, or says that there are none."""
    found: list[Case] = []
    for number, line in enumerate(plain_file.text(path).splitlines(), 1):
        if not line.strip():
            continue
        if limit is not None and len(found) >= limit:
            break
        where = f"{path}:{number}"
        row = json_file.convert(json_file.parse(line, where), Row, where)
        try:
            found.append(_case(where, row, tokenizer, chat=chat))
        except (Refusal, ValueError) as reason:  # ValueError: of several templates none is the default
            raise Refusal(f"{where}: {reason}") from reason
    if not found:
        raise Refusal(f"{path} has no prompt")
    return found


def _case(where: str, row: Row, tokenizer: Any, *, chat: bool | None) -> Case:
    turns = [{"role": turn.role, "content": turn.content} for turn in row.messages or ()]
    wanted = row.answer if row.completion is None else row.completion
    talk = bool(turns) and turns[-1]["role"] == "assistant"
    if talk:
        said = turns.pop()["content"]
        if wanted is not None:
            raise Refusal("the last message is the assistant's, and there is another answer beside it")
        wanted = said
    if (row.prompt is None) == (not turns):
        raise Refusal('a row has either "prompt" or "messages" that somebody is to answer')
    if wanted is None:
        raise Refusal(
            'there is no answer to compare with: give "answer", "completion" or a last message of the assistant'
        )
    text = row.prompt if row.prompt is not None else turns[-1]["content"]
    if chat is not False and (turns or chat):
        ids = chat_template.ids(tokenizer, turns or [{"role": "user", "content": text}], prompt=True)
    else:
        plain = text if not turns else "".join(f"{turn['content']}\n" for turn in turns)
        ids = list(tokenizer(plain, verbose=False)["input_ids"])
    match = row.match or _kind(wanted)
    return Case(where, text, tuple(map(int, ids)), _value(wanted, match), match, talk)


def _kind(wanted: Any) -> Match:
    if isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return "number"
    return "exact" if isinstance(wanted, str) and not isinstance(_json(wanted), dict | list) else "json"


def _value(wanted: Any, match: Match) -> Any:
    """What is compared with. Refusal if it is nothing of that kind."""
    if match == "json":
        found = _json(wanted) if isinstance(wanted, str) else wanted
    elif match == "number":
        found = _last_number(wanted) if isinstance(wanted, str) else wanted
    else:
        found = wanted if isinstance(wanted, str) else json.dumps(wanted, ensure_ascii=False)
    if found is None:
        raise Refusal(f'the answer {wanted!r} is not what "match": "{match}" compares with')
    return found


def answers(
    subject: JournaledModel, tokenizer: Any, cases: Sequence[Case], ends: Sequence[int], longest: int
) -> list[str]:
    """What a model writes to each prompt, greedily."""
    found: list[str] = []
    subject.tell(0, len(cases))
    for case in cases:
        ids = subject.text(case.ids, ends, longest, lambda _: False, None)
        found.append(str(tokenizer.decode(ids, skip_special_tokens=True)))
        subject.tell(len(found), len(cases))
    return found


def samples(name: str, cases: Sequence[Case], texts: Sequence[str]) -> Samples:
    """One task: for every way to judge, 1.0 or 0.0 of each prompt that is judged so."""
    metrics: dict[str, list[float]] = {}
    for case, text in zip(cases, texts, strict=True):
        metrics.setdefault(case.match, []).append(float(right(case, text)))
        if case.match == "json":
            metrics.setdefault(VALID, []).append(float(_json(text) is not None))
    return {name: metrics}


def compared(name: str, cases: Sequence[Case], texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The task as measure.compared gives it; `texts`: of the artifact, the reference, the float model."""
    each = [samples(name, cases, found) for found in texts.values()]
    return measure.compared(*(measure.Answers(s, {}, {name: dict.fromkeys(s[name], True)}) for s in each))


def right(case: Case, text: str) -> bool:
    """Whether an answer is what is wanted."""
    return _JUDGES[case.match](case.wanted, text.strip())


def rows(cases: Sequence[Case], texts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Every prompt with what each model wrote: for reading what went wrong."""
    return [
        {
            "where": case.where,
            "prompt": case.text,
            "wanted": case.wanted,
            "match": case.match,
            "answers": {name: found[i] for name, found in texts.items()},
            "right": {name: right(case, found[i]) for name, found in texts.items()},
        }
        for i, case in enumerate(cases)
    ]


def _json(text: str) -> Any:
    """The value, or None: JSON's null is nobody's answer."""
    try:
        return json_file.parse(text, "the answer")
    except Refusal:
        return None


def _last_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same: 1 and 1.0 are, 1 and true are not."""
    if isinstance(a, dict) and isinstance(b, dict):
        one, other = cast("dict[str, Any]", a), cast("dict[str, Any]", b)
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(a, list) and isinstance(b, list):
        ours, theirs = cast("list[Any]", a), cast("list[Any]", b)
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _same_number(wanted: float, text: str) -> bool:
    found = _last_number(text)
    return found is not None and math.isclose(found, wanted, rel_tol=1e-9)


_JUDGES: Mapping[Match, Callable[[Any, str], bool]] = {
    "exact": lambda wanted, text: text == wanted.strip(),
    "json": lambda wanted, text: same(wanted, _json(text)),
    "contains": lambda wanted, text: wanted in text,
    "number": _same_number,
}
