# SPDX-License-Identifier: Apache-2.0
"""Which bytes a result is about, what answered, and where dlqat-eval leaves it for dlqat-check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlqat import atomic
from dlqat.artifact import Artifact
from dlqat.runtime_tests.eval.journal import digest


def fingerprint(artifact: Artifact) -> str:
    """Of the program with all that stands beside it under its name, and every file that the manifest names."""
    paths = {artifact.folder / name for name in artifact.manifest.files}
    for found in artifact.program.parent.glob(f"{artifact.program.stem}*"):
        paths |= set(found.rglob("*")) if found.is_dir() else {found}
    return digest(sorted((str(p.relative_to(artifact.folder)), atomic.sha256(p)) for p in paths if p.is_file()))


def of_reference(folder: Path) -> str:
    """Of the weights and the config that transformers loads."""
    paths = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    return digest([(p.name, atomic.sha256(p)) for p in paths if p.is_file()])


def of_session(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What answers: a session's facts without those that change from run to run, or that answers do not hang on."""
    return {name: value for name, value in facts.items() if name not in ("timings", "load_seconds", "threads")}


def result_path(folder: Path, device: str) -> Path:
    """The result file of dlqat-eval."""
    return folder / f"eval-{device}.json"


def answers_path(folder: Path, device: str) -> Path:
    """What the artifact, its reference and the float model wrote to --prompts, a JSON line each."""
    return folder / f"answers-{device}.jsonl"
