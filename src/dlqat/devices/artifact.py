# SPDX-License-Identifier: Apache-2.0
"""An artifact folder: where its program lies and whether its files are the ones that were written.

Shared by devices (which load it) and by the proof (which reads its bytes). It knows the layout that
docs/check.md states and nothing of the code that writes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dlqat import atomic, json_file, plain_file
from dlqat.refusal import Refusal

PROGRAMS = {
    ".onnx": "onnx",
    ".pte": "executorch",
    ".mlpackage": "coreml",
}
"""Suffix of the program (a file, or the folder that Core ML calls a package) -> format."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Where the programs are. `manifest` is the content of manifest.json, or empty."""

    folder: Path
    program: Path
    """The file that gives the logits of all positions: for scoring text, and for the proof."""
    generator: Path
    """The file that apps generate with (genai_config.json names it); it may give the last logits only."""
    manifest: Mapping[str, Any]

    @property
    def format(self) -> str:
        return PROGRAMS[self.program.suffix]

    @property
    def context(self) -> int | None:
        """Positions that the artifact has room for; None if the manifest does not tell."""
        found = self.manifest.get("context")
        return found if isinstance(found, int) else None

    @property
    def programs(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys((self.program, self.generator)))


def find(folder: Path) -> Artifact:
    """The artifact in `folder`. Refusal if there is none, or more than one program to choose from."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Refusal(f"{folder} is not a folder; give the folder that dlqat-export wrote (model_dir/onnx)")
    manifest = _manifest(folder / "manifest.json")
    generator = _generator(folder, manifest)
    if isinstance(named := manifest.get("model"), str):
        program = _named(folder, named, "manifest.json")
        return Artifact(folder, program, generator or program, manifest)
    found = sorted(p for p in (*folder.glob("*"), *folder.glob("onnx/*")) if p.suffix in PROGRAMS)
    found = [p for p in found if p != generator] or found
    if len(found) != 1:
        what = f"{len(found)} programs ({', '.join(p.name for p in found)})" if found else "no program"
        raise Refusal(f"{folder} holds {what} ({', '.join(PROGRAMS)}); expected one, as dlqat-export writes it")
    return Artifact(folder, _whole(found[0]), generator or found[0], manifest)


def _manifest(path: Path) -> dict[str, Any]:
    """What all else relies on: "files" names files with their checksums, "context" is a number of tokens."""
    found = read_json(path)
    files: Any = found.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in cast("Any", files).values()):
        raise Refusal(f'{path}: "files" does not give each file its checksum; export again')
    context = found.get("context")
    if context is not None and (type(context) is not int or context < 1):
        raise Refusal(f'{path}: "context" is {context!r}, and should be a number of tokens; export again')
    return found


def _generator(folder: Path, manifest: Mapping[str, Any]) -> Path | None:
    """The file that apps run: what onnxruntime-genai is told, else what the manifest names."""
    found: Any = read_json(folder / "genai_config.json")
    for key in ("model", "decoder", "filename"):
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, str):
        return _named(folder, found, "genai_config.json")
    found = manifest.get("generator")
    return _named(folder, found, "manifest.json") if isinstance(found, str) else None


def _named(folder: Path, name: str, where: str) -> Path:
    program = folder / name
    if plain_file.name_fault(name) is not None or program.suffix not in PROGRAMS or not _inside(program, folder):
        raise Refusal(f"{folder / where} names the model {name!r}, which is no program of this folder")
    if not program.exists():
        raise Refusal(f"{program} is missing, and {where} names it; export again")
    return _whole(program)


def _whole(program: Path) -> Path:
    """The program, which is a plain file, or for Core ML a folder."""
    reason = plain_file.fault(program)
    if program.suffix == ".mlpackage":
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
    files = artifact.manifest.get("files", {})
    for name, entry in sorted(files.items()):
        reason = plain_file.inside_fault(artifact.folder, name)
        if reason == "does not exist":
            yield f"{name}: manifest.json names it, but it is missing"
        elif reason is not None:
            yield f"{name}: manifest.json names it, and it {reason}"
        elif atomic.sha256(artifact.folder / name) != entry.get("sha256"):
            yield f"{name}: its sha256 is not the one in manifest.json; the file was changed or damaged"


def source(artifact: Artifact) -> dict[str, str]:
    """File name in folded/ -> sha256, of what the artifact was made from; empty if the manifest does not tell."""
    found: Any = artifact.manifest.get("source")
    found = found.get("folded") if isinstance(found, dict) else None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file. Refusal if it is no JSON object."""
    return json_file.read_if_there(path, "; export again")


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(
        os.path.realpath(folder)
    )  # resolve() raises on links in a circle
