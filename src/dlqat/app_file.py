# SPDX-License-Identifier: Apache-2.0
"""dlqat-app.json: all that an app must know of a model, in one file that every app of `apps/` reads.

It stands in each artifact and speaks of paths relative to itself. Exporters write it, `dlqat-app` copies it into an app;
TypeScript, Kotlin and Swift read the same keys, so a new key, or another meaning, is a new `format`.

Export cannot know whether the integers are right: `integers` says "not verified" until a report of dlqat-check about these
very files says more (`with_report`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dlqat import artifact as artifacts
from dlqat import atomic, json_file, plain_file
from dlqat.artifact import Artifact
from dlqat.refusal import Refusal

NAME, FORMAT = "dlqat-app.json", 1
NOT_VERIFIED = "not verified"
_AGAIN = "; export again"
Count = Annotated[int, msgspec.Meta(ge=1)]
Token = Annotated[int, msgspec.Meta(ge=0)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class AppFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the model's files."""

    sha256: Digest
    bytes: Annotated[int, msgspec.Meta(ge=0)]


class Turns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The template as three texts, for apps without Jinja: head USER tail ANSWER mid USER tail ANSWER ..."""

    head: str
    tail: str
    mid: str

    def prompt(self, contents: list[str]) -> str:
        """Of a conversation that the user begins and ends."""
        texts = [text + (self.mid if at % 2 else self.tail) for at, text in enumerate(contents)]
        return self.head + "".join(texts)


class App(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file."""

    format: int
    name: str
    """For people."""
    target: str
    form: str
    program: str
    """What the app generates with."""
    context: Count
    """Tokens of a conversation, prompt and answer."""
    eos: list[Token]
    """Every id that ends an answer; empty where the artifact has no tokenizer."""
    eos_tokens: list[str]
    """The same as text."""
    special: dict[str, str]
    """bos_token, eos_token, ...: what a template may name."""
    template: str | None
    """Chat template (Jinja); None: the model takes plain text."""
    turns: Turns | None
    """The same, where three texts can say it."""
    sampling: dict[str, Any]
    """The settings of generation_config.json that change a text; empty: greedy."""
    bits: dict[str, Count]
    """Bits of the codes -> number of matrices."""
    bits_per_weight: float
    parameters: Count
    files: dict[str, AppFile]
    """What an app needs, programs and tokenizer, with their digests."""
    integers: str = NOT_VERIFIED
    """What dlqat-check found about the integers: passed, failed, not verified."""


class _Check(msgspec.Struct):
    rung: str
    status: str
    figures: dict[str, Any] = {}


class _Report(msgspec.Struct):
    checks: list[_Check] = []


def read(folder: Path) -> App:
    """The description in an artifact. Refusal if there is none, or it is not one that this dlqat writes."""
    path = folder / NAME
    if plain_file.fault(path) == "does not exist":
        raise Refusal(f"{folder} has no {NAME}{_AGAIN}")
    content = json_file.read(path, _AGAIN)
    if content.get("format") != FORMAT:
        raise Refusal(f"{path} has format {content.get('format')!r}, this dlqat reads {FORMAT}{_AGAIN}")
    found = json_file.convert(content, App, str(path), _AGAIN)
    for name in (found.program, *found.files):
        if plain_file.name_fault(name) is not None:
            raise Refusal(f"{path} names {name!r}, which leads out of its folder{_AGAIN}")
    return found


def weights(app: App) -> str:
    """The file whose digest says which model it is: the program; of a package, that of its weights (weight.bin)."""
    if app.program in app.files:
        return app.program
    inside = sorted(name for name in app.files if name.startswith(f"{app.program}/") and name.endswith("weight.bin"))
    if not inside:
        raise Refusal(f"{NAME} names no file of {app.program}{_AGAIN}")
    return inside[0]


def conversation(contents: list[str]) -> list[dict[str, str]]:
    """As messages; the user begins."""
    return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(contents)]


def text(app: App) -> str:
    """The file's content."""
    return json.dumps(msgspec.to_builtins(app), indent=1, ensure_ascii=False) + "\n"


def with_report(app: App, found: Artifact) -> App:
    """What dlqat-check said of the integers (rung L0), where its report is about files that are still the same."""
    report = json_file.convert(json_file.read_if_there(found.folder / "report.json"), _Report, "report.json")
    rows = [check for check in report.checks if check.rung == "L0"]
    about = {row.figures.get("manifest_sha256") for row in rows} - {None}
    if about != {atomic.sha256(found.folder / artifacts.MANIFEST)} or any(artifacts.damage(found)):
        return msgspec.structs.replace(app, integers=NOT_VERIFIED)
    states = {row.status for row in rows}
    state = "failed" if "failed" in states else "passed" if states == {"passed"} else NOT_VERIFIED
    return msgspec.structs.replace(app, integers=state)
