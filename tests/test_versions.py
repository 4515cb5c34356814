# SPDX-License-Identifier: Apache-2.0
"""Versions: ranges that were run, and the one set that everything was run with."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

import matrix
from dlqat import tested

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LINES = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if not x.startswith("#")]
PINNED = {Requirement(x).name: str(Requirement(x).specifier)[2:] for x in LINES}
OWN_ENVIRONMENT = {"bench", "aihub"}
"""Extras that `make .venv/ready` does not install."""


def asked() -> Iterator[Requirement]:
    """Every requirement of pyproject.toml that `make` installs."""
    for extra, wanted in {"": PROJECT["dependencies"], **EXTRAS}.items():
        if extra not in OWN_ENVIRONMENT:
            yield from (r for r in map(Requirement, wanted) if r.name != "dlqat")


def wrong(pinned: dict[str, str]) -> list[str]:
    """Requirements that a set of versions does not meet, or does not name."""
    return [
        str(r)
        for r in asked()
        if matrix.normal(r.name) not in pinned or pinned[matrix.normal(r.name)] not in r.specifier
    ]


def test_constraints_are_inside_the_ranges() -> None:
    assert len(LINES) == len(PINNED) > 100 and all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in LINES)
    assert wrong(PINNED) == []
    assert wrong({**PINNED, "torch": "2.1.0"}) == [r for r in map(str, asked()) if r.startswith("torch>")]
    assert wrong({k: v for k, v in PINNED.items() if k != "onnx-ir"}) == [
        r for r in map(str, asked()) if r.startswith("onnx-ir")
    ]


def test_make_installs_the_constraints() -> None:
    """What CI tests is what the file says: no install of the Makefile leaves it out, and none names a version besides."""
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\n.venv/ready:")[2].partition("\n\n")[0]
    installs = [line for line in recipe.splitlines() if "$(PIP)" in line and "--no-deps" not in line]
    assert len(installs) == 2 and all("--constraint constraints.txt" in line and "==" not in line for line in installs)
    assert "constraints.txt" in recipe.splitlines()[0]


def test_the_onnx_extra_brings_a_runtime_that_is_not_known_to_be_bad() -> None:
    """tested.toml knows the lower bound, with every form, 2 bits and soft caps."""
    (bound,) = {s.version for r in asked() if r.name == "onnxruntime" for s in r.specifier if s.operator == ">="}
    for form in ("qdq", "ort", "web"):
        assert tested.known("onnxruntime", f"{bound}.0", form, [2], capped=True) is None
