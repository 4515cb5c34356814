# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what an exported folder is, so that it can be checked years later and by programs.

format, target, form      how to read the folder
model                     the file that holds the program, relative to the folder
source, specs             from what and under which training spec it was made
bytes, bits_per_weight    where the size goes
files                     size and SHA-256 of every other file
versions                  what wrote it
"""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

import dlqat
from dlqat import artifact, atomic, json_file
from dlqat.artifact import FORMAT
from dlqat.artifact import MANIFEST as NAME
from dlqat.folded.disk import WEIGHT_FILES, FoldedModel, tokenizer_files
from dlqat.formats import FORMATS
from dlqat.grid import as_json
from dlqat.refusal import Refusal

_REPORTS = {"report.md": "# dlqat-check: ", "report.html": "<!doctype html>", "report.json": "{", "badge.svg": "<svg "}
"""How the files begin that dlqat-check puts into an artifact."""


class Content(artifact.Manifest, frozen=True, kw_only=True):
    """What every target writes; details of a target stand beside it."""

    format: Literal[1]
    specs: list[dict[str, Any]]
    parameters: int
    bits_per_weight: float
    bytes: dict[str, int]
    versions: dict[str, str]


def schema() -> dict[str, Any]:
    """JSON Schema of manifest.json as it is written; reading asks for less (artifact.Manifest)."""
    found = msgspec.json.schema(Content)
    fields = found["$defs"][Content.__name__]
    optional = ("generator", "context")  # of some targets
    fields["required"] = [name for name in fields["properties"] if name not in optional]
    return found


@dataclass(frozen=True)
class Written:
    """What a target says about the folder that it wrote."""

    target: str
    form: str
    program: str
    parameters: int
    sizes: Mapping[str, int]
    """Component -> bytes; together they are the program and its data."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What is particular to the target."""


def write(made: Written, model: FoldedModel, source: Path, folder: Path) -> dict[str, Any]:
    """Write manifest.json for the files in `folder`, made from the folded/ folder `source`; return its content."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    total = sum(made.sizes.values())
    content = {
        "format": FORMAT,
        "target": made.target,
        "form": made.form,
        "model": made.program,
        **made.details,
        "source": {
            "model_type": model.config.get("model_type"),
            "name": model.config.get("_name_or_path"),
            "folded": {name: atomic.sha256(source / name) for name in _made_from(source, folder)},
        },
        "specs": _specs(model),
        "parameters": made.parameters,
        "bits_per_weight": round(8 * total / made.parameters, 3),
        "bytes": {**made.sizes, "total": total},
        "files": {
            p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": atomic.sha256(p)} for p in files
        },
        "versions": {"dlqat": dlqat.__version__}
        | {name: importlib.metadata.version(name) for name in (*FORMATS[made.target].written_with, "torch")},
    }
    json_file.convert(content, Content, NAME)
    (folder / NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def earlier(folder: Path) -> dict[str, str]:
    """Path -> sha256 of what a dlqat that wrote no marker put into an artifact: as its manifest says, and reports."""
    try:
        content = json_file.read(folder / NAME)
    except Refusal:
        return {}
    match content:  # web apps have a manifest.json, too
        case {"format": int(), "target": str(), "files": dict(files)}:
            listed = {str(name): str(entry.get("sha256")) for name, entry in files.items() if isinstance(entry, dict)}
        case _:
            return {}
    added = [name for name, start in _REPORTS.items() if _begins(folder / name, start)]
    added += [p.name for p in folder.glob("eval-*.json") if {"program", "device"} <= set(json_file.read_if_there(p))]
    return {**listed, **{name: atomic.sha256(folder / name) for name in (NAME, *added)}}


def _begins(path: Path, start: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(start)) == start.encode()


def _made_from(source: Path, folder: Path) -> list[str]:
    """Files of folded/ that are in the artifact, as they are or in another form: if one changes, it is out of date."""
    return [name for name in (*WEIGHT_FILES, *tokenizer_files(folder)) if (source / name).is_file()]


def _specs(model: FoldedModel) -> list[dict[str, Any]]:
    """Each training spec once, with the number of layers that have it."""
    counted = Counter(model.specs.values())
    return [{"layers": count, "grid": str(spec.grid), **as_json(spec)} for spec, count in counted.items()]
