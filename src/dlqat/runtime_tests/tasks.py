# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm_eval, as they are packaged, with their questions from files of this machine.

A folder of data holds TASK_SPLIT.jsonl, one document per line as the task's own dataset has them:
arc_easy_test.jsonl, piqa_validation.jsonl. Prompts and metrics stay those of the packaged task; only where
the documents come from changes. Splits without a file are removed, so nothing is looked for on the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from dlqat.refusal import Refusal

SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


def configs(names: Sequence[str], data: Path | None) -> tuple[list[str | dict[str, Any]], Any]:
    """Tasks and TaskManager for lm_eval.simple_evaluate. Refusal for unknown tasks and missing files."""
    from lm_eval.tasks import TaskManager

    if data is not None:
        # The index of all packaged tasks takes 20 s to build; a local task needs its own definition only.
        return [_local(name, data) for name in names], TaskManager(include_defaults=False)
    manager = TaskManager()
    if unknown := [name for name in names if name not in manager.task_index]:
        raise Refusal(f"lm_eval has no task {unknown[0]!r}; `lm-eval ls tasks` lists what there is")
    return list(names), manager


def check_answers(configs: tuple[Sequence[str | dict[str, Any]], Any], limit: int) -> None:
    """Refusal if a task writes in a way that a Subject with a context of `limit` cannot; no document is read for it."""
    from dlqat.runtime_tests import harness

    for spec in configs[0]:
        for found in definitions(spec, configs[1].task_index):
            if found.get("output_type") == "generate_until":
                try:
                    harness.longest(found.get("generation_kwargs") or {}, limit)
                except Refusal as reason:
                    raise Refusal(f"{found['task']}: {reason}") from reason


def definitions(spec: str | Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The definition of a task, or those of all members of a group or tag. `index`: TaskManager.task_index."""
    given: Mapping[str, Any] = {"task": spec} if isinstance(spec, str) else spec
    name: Any = given.get("group") or given.get("task")
    entry = index.get(name) if isinstance(name, str) else None
    if entry is not None and entry.cfg is None:  # a tag
        members: Any = sorted(entry.tags)
    else:
        packaged = entry.cfg if entry is not None else {}
        given = {**given, **packaged} if isinstance(spec, str) else {**packaged, **given}
        members = given.get("task")
    if isinstance(members, list):
        for member in cast("list[Any]", members):
            yield from definitions(member, index)
    else:
        yield given


def _splits(name: str, data: Path) -> dict[str, Path]:
    return {split: path for split in SPLITS if (path := data / f"{name}_{split}.jsonl").is_file()}


def _definition(name: str) -> Path | None:
    """The packaged definition: NAME.yaml, or else the file that says `task: NAME` (winogrande/default.yaml)."""
    import lm_eval

    paths = sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml"))
    if named := [p for p in paths if p.stem == name]:
        return named[0]
    line = re.compile(rf"^task: *{re.escape(name)} *$".encode(), re.MULTILINE)
    return next((p for p in paths if line.search(p.read_bytes())), None)


def _local(name: str, data: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    found = _definition(name)
    if found is None:
        raise Refusal(f"lm_eval has no task {name!r} of its own (groups need a network); `lm-eval ls tasks` lists them")
    splits = _splits(name, data)
    if not splits:
        raise Refusal(f"{data} has no {name}_test.jsonl and no {name}_validation.jsonl; one document per line")
    packaged: dict[str, Any] = load_yaml(found)
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
