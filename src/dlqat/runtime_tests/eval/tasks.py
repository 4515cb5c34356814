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

from dlqat import plain_file
from dlqat.refusal import Refusal

YAML = (".yaml", ".yml")
SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


def configs(
    names: Sequence[str], data: Path | None, shots: int | None = None
) -> tuple[list[str | dict[str, Any]], Any]:
    """Tasks and TaskManager for lm_eval.simple_evaluate. Refusal for unknown tasks and missing files."""
    from lm_eval.tasks import TaskManager

    if own := [name for name in names if name.endswith(YAML)]:
        if len(own) < len(names) or data is not None:
            raise Refusal(f"{own[0]} is a task of your own; ask it without other tasks and without --data")
        return [_own(Path(name)) for name in own], TaskManager(include_defaults=False)
    if data is not None:
        # The index of all packaged tasks takes 20 s to build; a local task needs its own definition only.
        return [_local(name, data, shots) for name in names], TaskManager(include_defaults=False)
    manager = TaskManager()
    if unknown := [name for name in names if name not in manager.task_index]:
        raise Refusal(f"lm_eval has no task {unknown[0]!r}; `lm-eval ls tasks` lists what there is")
    return list(names), manager


def _own(path: Path) -> dict[str, Any]:
    """A user's definition of a task. Its files of documents lie beside it, if their names do not say where. What it names by
    !function is the user's code, and runs."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if (reason := plain_file.fault(path)) is not None:
        raise Refusal(f"{path} {reason}; give --tasks a task of lm_eval, or a file that defines one")
    try:
        found: dict[str, Any] = load_yaml(path)
    except Exception as error:  # of yaml, and of what it imports
        raise Refusal(f"{path} is no task of lm_eval ({' '.join(str(error).split())[:200]})") from error
    if missing := [key for key in ("task", "dataset_path") if not found.get(key)]:
        raise Refusal(f"{path} is no task of lm_eval: it has no {missing[0]!r}")
    options: dict[str, Any] = found.get("dataset_kwargs") or {}
    files = options.get("data_files")
    if isinstance(files, dict):
        beside = {split: str(path.parent / str(name)) for split, name in cast("dict[str, Any]", files).items()}
        found["dataset_kwargs"] = {**options, "data_files": beside}
    return found


def check_answers(configs: tuple[Sequence[str | dict[str, Any]], Any], limit: int) -> None:
    """Refusal if a task writes in a way that a JournaledModel with a context of `limit` cannot; no document is read for it."""
    from dlqat.runtime_tests.eval import lm_eval_model

    for spec in configs[0]:
        for found in definitions(spec, configs[1].task_index):
            if found.get("output_type") == "generate_until":
                try:
                    lm_eval_model.longest(found.get("generation_kwargs") or {}, limit)
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


def _definition(name: str) -> dict[str, Any] | None:
    """The packaged definition. lm_eval's own index knows best; a file that is NAME.yaml or says `task: NAME`, and is the only one
    that means this task once its includes are read, spares the 20 s that it takes to build."""
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    paths = sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml"))
    line = re.compile(rf"^task: *[\"']?{re.escape(name)}[\"']? *(#.*)?$".encode(), re.MULTILINE)
    named = [p for p in paths if p.stem == name or line.search(p.read_bytes())]
    found = [p for p in named if load_yaml(p, resolve_func=False).get("task") == name]  # the functions import more
    if len(found) == 1:
        return load_yaml(found[0])
    entry = TaskManager().task_index.get(name)
    if entry is None or entry.kind.name != "TASK" or entry.yaml_path is None:
        return None
    return load_yaml(entry.yaml_path)


def _local(name: str, data: Path, shots: int | None) -> dict[str, Any]:
    packaged = _definition(name)
    if packaged is None:
        raise Refusal(f"lm_eval has no task {name!r} of its own (groups need a network); `lm-eval ls tasks` lists them")
    splits = _splits(name, data)
    if not splits:
        raise Refusal(f"{data} has no {name}_test.jsonl and no {name}_validation.jsonl; one document per line")
    if not any(packaged.get(SPLITS[s]) for s in ("validation", "test") if s in splits):
        raise Refusal(f"{name} does not ask the questions of {', '.join(map(str, splits.values()))}")
    own: dict[str, Any] = {key: (packaged.get(key) and s if s in splits else None) for s, key in SPLITS.items()}
    examples = packaged.get("fewshot_split")
    if isinstance(examples, str) and (path := data / f"{name}_{examples}.jsonl").is_file():
        splits[examples] = path
    elif examples is not None:
        own["fewshot_split"] = None
    _examples(name, data, packaged, packaged | own, splits, shots)
    return {
        **packaged,
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path) for split, path in splits.items()}},
        **own,
    }


def _examples(
    name: str,
    data: Path,
    packaged: Mapping[str, Any],
    local: Mapping[str, Any],
    splits: Mapping[str, Path],
    shots: int | None,
) -> None:
    """Refusal if the examples of the prompts would come from the questions: a question's own answer could stand before it."""
    count = local.get("num_fewshot") if shots is None else shots
    written = (local.get("fewshot_config") or {}).get("samples")
    asked, own = local.get("test_split") or local.get("validation_split"), local.get("fewshot_split")
    if not count or written is not None or (own in splits and (own != asked or local.get("test_split"))):
        return  # lm_eval itself leaves a question out of the examples where both come from the test split
    if own is None and any(
        split and split != asked for split in (local.get("training_split"), local.get("validation_split"))
    ):
        return
    wanted = packaged.get("fewshot_split") or "train"
    raise Refusal(
        f"{name} shows {count} examples, and {data} has its questions only, so a question's own answer could be among them; "
        f"add {name}_{wanted}.jsonl, or use --shots 0"
    )
