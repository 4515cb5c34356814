# SPDX-License-Identifier: Apache-2.0
"""benchmarks/actions: the same rows each time, and a test set that asks in words and for values of its own."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlqat.runtime_tests.eval import prompts
from toy_tokenizer import CHATML, toy_tokenizer

HERE = Path(__file__).parents[1] / "benchmarks" / "actions"


@pytest.fixture(scope="module")
def generate() -> Any:
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module("generate")
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def rows(generate: Any) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """split -> what was said, and the call."""
    return {
        split: [(r["messages"][0]["content"], json.loads(r["messages"][1]["content"])) for r in generate.rows(split)]
        for split in generate.SPLITS
    }


def test_every_function_is_asked_for_in_every_split(generate: Any, rows: Any) -> None:
    slots = {f.name: set(f.slots) for f in generate.FUNCTIONS} | {"none": set()}
    for split, found in rows.items():
        assert len(found) == generate.SIZES[split]
        assert {call["name"] for _, call in found} == set(slots)
        assert all(set(call["arguments"]) == slots[call["name"]] for _, call in found)


def test_the_splits_share_neither_requests_nor_values(generate: Any, rows: Any) -> None:
    said = {split: {text.lower().strip(" .!?") for text, _ in found} for split, found in rows.items()}
    assert not said["train"] & said["test"]
    kinds = {(f.name, argument): kind for f in generate.FUNCTIONS for argument, kind in f.slots.items()}

    def values(split: str) -> set[tuple[str, str]]:
        return {
            (kinds[call["name"], argument], str(value))
            for _, call in rows[split]
            for argument, value in call["arguments"].items()
            if kinds[call["name"], argument] not in generate.ANY
        }

    assert not values("train") & values("test")
    assert not values("train") & values("held")
    for function in generate.FUNCTIONS:
        parts = [set(generate.parted(function.phrasings, split)) for split in generate.SPLITS]
        assert all(parts) and sum(map(len, parts)) == len(set(function.phrasings))
        assert all(phrasing.count(f"{{{slot}}}") == 1 for phrasing in function.phrasings for slot in function.slots)


def test_the_files_are_what_the_commands_read(tmp_path: Path) -> None:
    """The same bytes each time; dlqat-eval compares the calls as JSON."""
    script = HERE / "generate.py"
    for name in ("a", "b"):
        subprocess.run([sys.executable, script, tmp_path / name], check=True, capture_output=True)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["held.jsonl", "test.jsonl", "train.jsonl"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in files)
    cases = prompts.read(tmp_path / "a" / "test.jsonl", toy_tokenizer(CHATML), 20, chat=None)
    assert {case.match for case in cases} == {"json"}
