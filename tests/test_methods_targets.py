# SPDX-License-Identifier: Apache-2.0
"""The table of docs/methods.md that says which target holds what: every cell of it is asked of the target itself."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from dlqat.exporters import fold, pipeline
from dlqat.folded import disk
from dlqat.folded.disk import FoldedModel
from test_methods_road import call
from toy_tokenizer import write_base

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
TARGETS = {
    "onnx qdq": ("onnx", "qdq"),
    "onnx ort": ("onnx", "ort"),
    "onnx web": ("onnx", "web"),
    "executorch": ("executorch", None),
    "coreml": ("coreml", None),
}
HELD = "yes"
Made = Callable[[str], tuple[FoldedModel, Path]]


def table() -> list[tuple[str, dict[str, str]]]:
    """(options of dlqat-train, column -> cell) of each row that begins with `--method`."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| `dlqat-train`"))
    columns = [c.strip() for c in lines[at].strip("|").split("|")][1:]
    rows: list[tuple[str, dict[str, str]]] = []
    for line in lines[at + 2 :]:
        if not line.startswith("| `--method"):
            break
        options, *cells = [c.strip() for c in line.strip("|").split("|")]
        rows.append((options.strip("`"), dict(zip(columns, cells, strict=True))))
    return rows


ROWS = table()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folded model of a row's options, made once."""
    folder = tmp_path_factory.mktemp("targets")
    model = write_base(folder)

    @cache
    def made(options: str) -> tuple[FoldedModel, Path]:
        out = folder / str(len(list(folder.iterdir())))
        call(model, out, *shlex.split(options))
        folded = fold.fold(out)
        return disk.read(folded), folded

    return made


def test_the_table_has_every_method_and_target() -> None:
    assert {options.split()[1] for options, _ in ROWS} == {"rtn", "gptq", "swsc", "casp", "nm"}
    assert all(set(cells) == set(TARGETS) for _, cells in ROWS)
    assert any(cell != HELD for _, cells in ROWS for cell in cells.values())


@pytest.mark.parametrize("column", TARGETS)
@pytest.mark.parametrize("options", [options for options, _ in ROWS])
def test_a_cell_is_what_the_target_says(models: Made, options: str, column: str) -> None:
    """`yes`, or words of the reason that dlqat-export gives, before any work."""
    model, folded = models(options)
    name, form = TARGETS[column]
    module = pipeline.load(name)
    rows = module.plan(model, folded, pipeline.choose(module, name, model.config, 128, {"form": form}))
    refused = {row.refused for row in rows if row.refused}
    cell = dict(ROWS)[options][column]
    assert (cell == HELD) == (not refused), refused
    assert cell == HELD or all(cell in reason for reason in refused), refused
