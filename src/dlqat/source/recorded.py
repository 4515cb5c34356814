# SPDX-License-Identifier: Apache-2.0
"""The float model that a model_dir was trained from, by dlqat-train's record, and whether it is on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from huggingface_hub import snapshot_download

from dlqat import json_file
from dlqat.model_dir import RECORD
from dlqat.refusal import Refusal
from dlqat.source import peft_adapter
from dlqat.source.resolve import Source, fingerprint, resolve


class Record(msgspec.Struct, frozen=True):
    """What dlqat.json says of it."""

    source: str
    fingerprint: str
    base: str | None = None
    """The base of a PEFT adapter, which `source` is then."""
    text_only: bool = False


def again(record: Record, named: str | None) -> Source:
    """The recorded model, or the place that the user names because it has moved: of an adapter either half may have."""
    if record.base is None:
        return resolve(named or record.source, text_only=record.text_only)
    if named and peft_adapter.is_adapter(Path(named)):
        return resolve(named, record.base)
    return resolve(record.source, named or record.base)


def at_hand(model_dir: Path, named: str | None) -> Source | str:
    """The float model; or, where nobody named it, why it is not here. The network is not asked. Refusal of what is
    named and is another one."""
    try:
        return _checked(model_dir, named)
    except Refusal as reason:
        if named is not None:
            raise
        return str(reason)


def _checked(model_dir: Path, named: str | None) -> Source:
    path = model_dir / RECORD
    if not path.is_file():
        raise Refusal(f"{model_dir} is not a model_dir: it has no {RECORD}")
    record = json_file.read_as(path, Record)
    if named is None or record.base is not None:
        record = msgspec.structs.replace(record, source=cached(record.source))
    found = again(record, named)
    if fingerprint(found) != record.fingerprint:
        raise Refusal(f"{found.path} is not the model that {model_dir} was trained from")
    return found


def cached(text: str) -> str:
    """org/name@commit as its folder in the hub's cache. Refusal if it is not there; a path is left as it is."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+?)@([0-9a-f]{40})", text)
    if match is None or Path(text).exists():
        return text
    try:
        return snapshot_download(match[1], revision=match[2], local_files_only=True)
    except Exception as error:  # the hub and the cache raise unrelated classes
        raise Refusal(f"{text} is not in the hub's cache") from error
