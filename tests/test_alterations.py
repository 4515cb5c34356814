# SPDX-License-Identifier: Apache-2.0
"""dlqat-check against a bad exporter: each alteration fails, at the rung that docs/check.md says.

`python tests/test_alterations.py` prints the table for that page, from the checks themselves.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import alterations
import artifacts
import coreml_runs
import models
from dlqat.folded import disk
from dlqat.runtime_tests.check import ladder

PAGE = Path(__file__).parents[1] / "docs" / "check.md"
FORMS = ("qdq", "ort", "web", "xnnpack", "coreml")
HEAD = f"| alteration | {' | '.join(FORMS)} |"
RUNGS = ("L0", "L1", "L2", "L3")
XNNPACK_HAS_NONE = {"a window of 5 tokens", "gemma3: windows of the layers exchanged"}
"""Refused by that target's plan, which these tests do not ask."""


@dataclass(frozen=True)
class Case:
    """One alteration of one form: `build` while it is written, `edit` of the finished ONNX file, or `file` of a small one."""

    form: str
    name: str
    build: Callable[[Any, Any], Any] | None = None
    edit: Callable[[Any], None] | None = None
    file: Callable[[Path], None] | None = None
    family: str = "llama-biased"


def cases() -> Iterator[Case]:
    for name, build in alterations.BUILT.items():
        for form in FORMS:
            if form != "web" and not (form == "xnnpack" and name in XNNPACK_HAS_NONE):  # web is built as qdq is
                yield Case(form, name, build=build)
    for name, (family, build) in alterations.FAMILY.items():
        for form in FORMS:
            capped = family in models.CAPPED and form == "xnnpack"
            if form != "web" and not capped and not (form == "xnnpack" and name in XNNPACK_HAS_NONE):
                yield Case(form, name, build=build, family=family)
    for form, edits in (("qdq", alterations.QDQ), ("ort", alterations.ORT), ("web", alterations.WEB)):
        for name, edit in edits.items():
            yield Case(form, name, edit=edit)
    for name, build in alterations.PTE.items():
        yield Case("xnnpack", name, build=build)
    for name, build in alterations.COREML.items():
        yield Case("coreml", name, build=build)
    for name, (forms, file) in alterations.FILES.items():
        yield from (Case(form, name, file=file) for form in forms)


def altered(case: Case, folder: Path) -> Path:
    """The artifact, beside the folded/ that it should hold."""
    window = {"sliding_window": artifacts.CONTEXT} if (case.form, case.family) == ("xnnpack", "gemma3_text") else {}
    model = models.fold_model(models.tiny(case.family, max_position_embeddings=512, **window))
    with pytest.MonkeyPatch.context() as patch:
        changed = case.build(patch, model) if case.build else model
        if case.form == "coreml":
            artifact = coreml_runs.export(folder / "made", changed)
        else:
            artifact = artifacts.export_model(folder / "made", case.form, changed)
    if case.edit:
        alterations.edited(artifact, case.edit)
    if case.file:
        case.file(artifact)
        alterations.fit(artifact)
    disk.write(model, folder / "wanted", files=folder / "made")
    return artifact


def noticed(case: Case, folder: Path) -> str:
    """The first rung with a check that fails, or "passed"."""
    proof = artifacts.proof(altered(case, folder), folder / "wanted")
    for rung in RUNGS:
        if any(check.status == "failed" for check in ladder.run(proof, (rung,))):
            return rung
    return "passed"


def documented() -> dict[tuple[str, str], str]:
    """(alteration, form) -> rung, as the page says."""
    lines = PAGE.read_text(encoding="utf-8").partition(f"{HEAD}\n")[2].splitlines()[1:]
    found: dict[tuple[str, str], str] = {}
    for line in lines:
        if not (cells := re.findall(r"(?<=\|)[^|]*(?=\|)", line)):
            break
        name, *rungs = (cell.strip() for cell in cells)
        found |= {(name, form): rung for form, rung in zip(FORMS, rungs, strict=True) if rung}
    return found


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.form}: {c.name}")
def test_every_alteration_is_noticed(case: Case, tmp_path: Path) -> None:
    assert noticed(case, tmp_path) == documented()[case.name, case.form]


def test_the_page_lists_them_all() -> None:
    assert {(c.name, c.form) for c in cases()} == set(documented())
    assert len(documented()) >= 60
    assert set(documented().values()) <= set(RUNGS)


def table() -> Iterator[str]:
    """The page's table, measured."""
    rows: dict[str, dict[str, str]] = {}
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            rows.setdefault(case.name, {})[case.form] = noticed(case, Path(folder))
    yield HEAD
    yield "|" + "---|" * (len(FORMS) + 1)
    for name, found in rows.items():
        yield f"| {name} | {' | '.join(found.get(form, '') for form in FORMS)} |"


if __name__ == "__main__":
    print("\n".join(table()))
