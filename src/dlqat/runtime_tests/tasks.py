# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm_eval, as they are packaged, with their questions from files of this machine.

A folder of data holds TASK_SPLIT.jsonl, one document per line as the task's own dataset has them:
arc_easy_test.jsonl, piqa_validation.jsonl. Prompts and metrics stay those of the packaged task; only where
the documents come from changes. Splits without a file are removed, so nothing is looked for on the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlqat.refusal import Refusal

SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


def configs(names: list[str], data: Path | None) -> list[str | dict[str, Any]]:
    """What lm_eval.simple_evaluate takes as tasks. Refusal for unknown tasks and missing files."""
    from lm_eval.tasks import TaskManager

    known = TaskManager().task_index
    found: list[str | dict[str, Any]] = []
    for name in names:
        if name not in known:
            raise Refusal(f"lm_eval has no task {name!r}; `lm-eval ls tasks` lists what there is")
        found.append(name if data is None else _local(name, known[name].yaml_path, data))
    return found


def files(names: list[str], data: Path | None) -> list[Path]:
    """The files that the tasks read."""
    return [] if data is None else sorted(p for n in names for p in _splits(n, data).values())


def _splits(name: str, data: Path) -> dict[str, Path]:
    return {split: path for split in SPLITS if (path := data / f"{name}_{split}.jsonl").is_file()}


def _local(name: str, definition: Path | None, data: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    splits = _splits(name, data)
    if not splits:
        raise Refusal(f"{data} has no {name}_test.jsonl and no {name}_validation.jsonl; one document per line")
    if definition is None:
        raise Refusal(f"{name} is a group of tasks; name its tasks one by one when the data are local files")
    packaged: dict[str, Any] = load_yaml(definition)
    if not any(packaged.get(SPLITS[s]) for s in ("validation", "test") if s in splits):
        raise Refusal(f"{name} does not ask the questions of {', '.join(map(str, splits.values()))}")
    own = {key: (packaged.get(key) and split if split in splits else None) for split, key in SPLITS.items()}
    if packaged.get("fewshot_split") not in (None, *splits):
        own["fewshot_split"] = None
    return {
        **packaged,
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path) for split, path in splits.items()}},
        **own,
    }
