# SPDX-License-Identifier: Apache-2.0
"""An artifact folder: what manifest.json says, where the program lies, whether the files are the ones that were written.

Exporters write it, devices load it and the proof reads its bytes: this is the schema that they share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dlqat import atomic, formats, json_file, plain_file
from dlqat.formats import FORMATS, SUFFIXES
from dlqat.refusal import Refusal

MANIFEST, FORMAT = "manifest.json", 1
_AGAIN = "; export again"


class File(msgspec.Struct, frozen=True):
    """One of the artifact's files."""

    sha256: str
    bytes: int | None = None


class Source(msgspec.Struct, frozen=True):
    """What the artifact was made from: file name in folded/ -> sha256."""

    folded: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True):
    """What others rely on in manifest.json; it says more, for people (exporters/manifest.py)."""

    target: str = ""
    form: str = ""
    model: str | None = None
    """The program, relative to the folder."""
    generator: str | None = None
    """The program that apps generate with, where it is another one."""
    context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Positions that the artifact has room for."""
    source: Source = Source()
    files: dict[str, File] = {}


@dataclass(frozen=True, slots=True)
class Artifact:
    """Where the programs are. `manifest` says nothing where there is no manifest.json."""

    folder: Path
    program: Path
    """The file that gives the logits of all positions: for scoring text, and for the proof."""
    generator: Path
    """The file that apps generate with (genai_config.json names it); it may give the last logits only."""
    manifest: Manifest

    @property
    def format(self) -> str:
        return formats.of(self.program)

    @property
    def programs(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys((self.program, self.generator)))


def find(folder: Path) -> Artifact:
    """The artifact in `folder`. Refusal if there is none, or more than one program to choose from."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Refusal(f"{folder} is not a folder; give the folder that dlqat-export wrote (model_dir/onnx)")
    manifest = json_file.convert(read_json(folder / MANIFEST), Manifest, str(folder / MANIFEST), _AGAIN)
    generator = _generator(folder, manifest)
    if manifest.model is not None:
        program = _named(folder, manifest.model, MANIFEST)
        return Artifact(folder, program, generator or program, manifest)
    telling = [form.suffix for form in FORMATS.values() if not form.common]
    found = sorted(p for p in (*folder.glob("*"), *folder.glob("onnx/*")) if p.suffix in telling)
    found = [p for p in found if p != generator] or found
    if len(found) != 1:
        what = f"{len(found)} programs ({', '.join(p.name for p in found)})" if found else "no program"
        raise Refusal(f"{folder} holds {what} ({', '.join(telling)}); expected one, as dlqat-export writes it")
    return Artifact(folder, _whole(found[0]), generator or found[0], manifest)


def _generator(folder: Path, manifest: Manifest) -> Path | None:
    """The file that apps run: what onnxruntime-genai is told, else what the manifest names."""
    found: Any = read_json(folder / "genai_config.json")
    for key in ("model", "decoder", "filename"):
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, str):
        return _named(folder, found, "genai_config.json")
    return None if manifest.generator is None else _named(folder, manifest.generator, MANIFEST)


def _named(folder: Path, name: str, where: str) -> Path:
    program = folder / name
    if plain_file.name_fault(name) is not None or program.suffix not in SUFFIXES or not _inside(program, folder):
        raise Refusal(f"{folder / where} names the model {name!r}, which is not a program of this folder")
    if not program.exists():
        raise Refusal(f"{program} is missing, and {where} names it; export again")
    return _whole(program)


def _whole(program: Path) -> Path:
    """The program, which is a plain file, or for Core ML a folder."""
    reason = plain_file.fault(program)
    if FORMATS[formats.of(program)].is_folder:
        reason = None if program.is_dir() else reason or "is a file; a package is a folder"
    if reason is not None:
        raise Refusal(f"{program} {reason}; export again")
    return program


def folded_beside(folder: Path, otherwise: str = "") -> Path:
    """folded/ beside an artifact's folder or, if that is a link, beside what it points to. Refusal if there is none;
    `otherwise`: what else the user can do."""
    parents = [*([folder.parent] if folder.name not in ("", "..") else []), folder.resolve().parent]
    for parent in parents:
        if (found := parent / "folded").is_dir():
            return found
    raise Refusal(f"{folder} has no folded/ beside it; name the reference with --reference model_dir/folded{otherwise}")


def damage(artifact: Artifact) -> Iterator[str]:
    """Every file of the manifest that is missing or whose bytes are not the ones that were written."""
    for name, file in sorted(artifact.manifest.files.items()):
        reason = plain_file.inside_fault(artifact.folder, name)
        if reason == "does not exist":
            yield f"{name}: manifest.json names it, but it is missing"
        elif reason is not None:
            yield f"{name}: manifest.json names it, and it {reason}"
        elif atomic.sha256(artifact.folder / name) != file.sha256:
            yield f"{name}: its sha256 is not the one in manifest.json; the file was changed or damaged"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file. Refusal if it is not a JSON object."""
    return json_file.read_if_there(path, _AGAIN)


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(
        os.path.realpath(folder)
    )  # resolve() raises on links in a circle
