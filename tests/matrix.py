# SPDX-License-Identifier: Apache-2.0
"""The suite on both ends of pyproject.toml's ranges: benchmarks/results/matrix.json (make test-matrix).

A row is a Python and one end: `oldest` installs the lower bound of every range, `newest` what an installer takes today.
Each gets a venv of its own with the built wheel and every target, so what is tested is what a user installs. The tests
marked `real` (minutes each) and those of other machines' runtimes stay with `make test`, which has constraints.txt.

    python tests/matrix.py                           # both rows
    python tests/matrix.py oldest --python python3.13 --keep /tmp/venvs
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "matrix.json"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROWS = {"oldest": "python3.12", "newest": "python3.13"}
"""The suite itself runs on 3.11 (make test)."""
EXTRAS = ("train", "onnx", "coreml", "gguf", "data")
"""executorch stands apart: its wheel asks for a newer torch than the rest."""
TOOLS = (
    "pytest==9.2.0",
    "pytest-timeout==2.4.0",
    "hypothesis==6.170.15",
    "filelock>=3.16",
    "scikit-learn>=1.6",
    "jsonschema>=4.26",
)
TESTS = ("grid", "layer", "recipe", "folded", "before", "decoder", "onnx_logits", "own_loop")
"""Integers, fold, the description of the forward, training with the grid, ONNX in onnxruntime: what versions could change."""


def requirements() -> Iterator[Requirement]:
    """Everything that pyproject.toml asks for, extras that the matrix installs included."""
    wanted = [*PROJECT["dependencies"], *(r for extra in EXTRAS for r in PROJECT["optional-dependencies"][extra])]
    yield from map(Requirement, wanted)


def oldest() -> list[str]:
    """The lower bound of every range, as constraints."""
    bounds = {r.name: s.version for r in requirements() for s in r.specifier if s.operator == ">="}
    return [f"{name}=={version}" for name, version in sorted(bounds.items())]


def install(row: str, base: str, folder: Path) -> Path:
    """A venv with the wheel of this tree; its Python."""
    python = folder / "bin" / "python"
    subprocess.run([base, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", made, ROOT], check=True)
        wheel = next(Path(made).glob("*.whl"))
        bounds = Path(made) / "oldest.txt"
        bounds.write_text("\n".join(oldest() if row == "oldest" else []), encoding="utf-8")
        subprocess.run([*pip, "install", "--constraint", bounds, f"{wheel}[{','.join(EXTRAS)}]", *TOOLS], check=True)
    return python


def run(python: Path) -> dict[str, Any]:
    """Counts, and the tests that failed by name."""
    tests = [f"tests/test_{name}.py" for name in TESTS]
    with tempfile.TemporaryDirectory() as made:
        report = Path(made) / "junit.xml"
        command = [
            python,
            "-m",
            "pytest",
            "-q",
            "-m",
            "not real",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *tests,
        ]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        environment["DLQAT_DEVICES"] = str(Path(made) / "none")  # what was fetched there is for another Python
        subprocess.run(command, check=False, cwd=ROOT, env=environment)
        suite = ET.parse(report).getroot()[0]  # noqa: S314 - ours
    counted = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    wrong = [
        f"{c.get('classname')}::{c.get('name')}"
        for c in suite
        if c.find("failure") is not None or c.find("error") is not None
    ]
    failed = counted["failures"] + counted["errors"]
    return {
        "passed": counted["tests"] - failed - counted["skipped"], "failed": failed, "skipped": counted["skipped"],
        "failures": wrong, "seconds": round(float(suite.get("time", 0))),
    }  # fmt: skip


def versions(python: Path) -> dict[str, str]:
    """Of Python and of what pyproject.toml names."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    found = {normal(p["name"]): p["version"] for p in json.loads(listed.stdout)}
    shown = subprocess.run([python, "--version"], check=True, capture_output=True, text=True)
    return {"python": shown.stdout.split()[1]} | {
        r.name: found[normal(r.name)] for r in requirements() if normal(r.name) in found
    }


def normal(name: str) -> str:
    """PyPI's form of a name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--python", help="in place of the row's own")
    parser.add_argument("--keep", type=Path, help="a folder for the venvs, which are kept and used again")
    asked = parser.parse_args()
    failed = 0
    for row in asked.rows or ROWS:
        with tempfile.TemporaryDirectory() as own:
            folder = (asked.keep or Path(own)) / row
            python = folder / "bin" / "python"
            if not python.exists():
                python = install(row, asked.python or ROWS[row], folder)
            found = {"versions": versions(python), **run(python)}
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**kept, row: found}, indent=1) + "\n")
        print(f"{row}: {found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped")
        failed += found["failed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
