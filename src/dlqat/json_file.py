# SPDX-License-Identifier: Apache-2.0
"""The one reader of JSON and TOML: text, depth, the kind of every value. What is wrong is said in one line, with its place.

Light: every command imports it. A schema is a dataclass or a msgspec type: `convert` says what is expected, where, and
what was found.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from dlqat import plain_file
from dlqat.refusal import Refusal

DEEPEST = 64
"""Levels of nesting that a file of ours or of a model has at most; a reader that calls itself is safe below it."""
T = TypeVar("T")


def read(path: Path, advice: str = "") -> dict[str, Any]:
    """The object in a JSON file. Refusal if it is missing, not JSON or not an object; `advice`: what the user can do."""
    if plain_file.fault(path) == "does not exist":
        raise Refusal(f"{path} does not exist; is {path.parent} a folded/ folder?")
    found = parse(plain_file.text(path, advice), str(path), advice)
    if not isinstance(found, dict):
        raise Refusal(f"{path} is not a JSON object{advice}")
    return cast("dict[str, Any]", found)


def read_if_there(path: Path, advice: str = "") -> dict[str, Any]:
    """The same; {} if there is no such file."""
    return read(path, advice) if path.is_file() else {}


def read_as(path: Path, kind: type[T], advice: str = "") -> T:
    """The value of a schema in a JSON file."""
    return convert(read(path, advice), kind, str(path), advice)


def parse(text: str | bytes, where: str, advice: str = "") -> Any:
    """A JSON value. Refusal, naming `where`, if it is none or too deep."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python converts
        raise Refusal(f"{where} is not JSON ({error}){advice}") from error
    return _shallow(found, where, advice)


def toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    text = plain_file.text(path)
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is no TOML: {error}") from error
    return _shallow(found, str(path), "")


def convert(value: Any, kind: type[T], where: str, advice: str = "") -> T:
    """A value that was read, as a schema has it. Refusal says what is expected, where, and what was found."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:  # ValueError: of a dataclass that judges itself
        raise Refusal(f"{where}: {_said(error)}{advice}") from error


def exactly(value: Any, kind: type[T], where: str, advice: str = "") -> T:
    """The same of a dataclass that knows all its keys: one that it does not know would change what the others mean."""
    known = {field.name for field in fields(cast("Any", kind))}
    if isinstance(value, dict) and (unknown := sorted(set(cast("dict[str, Any]", value)) - known)):
        raise Refusal(f"{where}: the key {unknown[0]!r} is not known to this dlqat{advice}")
    return convert(value, kind, where, advice)


def _said(error: Exception) -> str:
    return str(error).replace("`", "").replace(" - at $", " at $")


def _shallow(found: T, where: str, advice: str) -> T:
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += (v for v in cast("dict[str, Any]", value).values() if isinstance(v, dict | list))
            elif isinstance(value, list):
                inner += (v for v in cast("list[Any]", value) if isinstance(v, dict | list))
        if not inner:
            return found
        level = inner
    raise Refusal(f"{where} is nested more than {DEEPEST} levels deep{advice}")
