# SPDX-License-Identifier: Apache-2.0
"""The docs as a site: every command in the pages is one that dlqat parses, and what is made from the code is all there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import dlqat
from dlqat.command import VERBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def commands(text: str) -> Iterator[str]:
    """The dlqat commands of indented blocks and fences, without what is said beside them."""
    fences = "".join(re.findall(r"(?ms)^```\w*$.*?^```$", text))
    for line in re.findall(r"(?m)^    (dlqat[- ][a-z].*)$", text) + re.findall(r"(?m)^(dlqat[- ][a-z].*)$", fences):
        yield re.sub(r"\|[\w|-]+", "", re.split(r"\s{4,}|\s+#|\s*&&|\s*\\$", line)[0])


def fault(command: str) -> str | None:
    """Why a command is none, or None. What it names need not be there."""
    verb, *words = shlex.split(command.replace("dlqat-", "dlqat ", 1))[1:]
    if verb not in VERBS:
        return f"dlqat {verb} is not a verb"
    parser: Any = typer.main.get_command(import_module(VERBS[verb][0]).app)
    if inner := getattr(parser, "commands", None):
        parser, words = inner[words[0]], words[1:]
    try:
        parser.make_context(verb, words)
    except Exception as error:  # noqa: BLE001 - click's, or that of typer's own copy of click
        return str(error)
    return None


def test_the_pages_have_commands_that_are_parsed() -> None:
    found = [(page.name, command) for page in PAGES for command in commands(page.read_text())]
    assert [(*one, reason) for one in found if (reason := fault(one[1])) is not None] == []
    assert len(found) > 50 and {name for name, _ in found} >= {"chats.md", "actions.md", "three-bits.md", "mac.md"}


@pytest.mark.parametrize(
    "wrong",
    [
        "dlqat-train base --data a.txt",
        "dlqat-export model_dir --format onnx",
        "dlqat quantize x",
        "dlqat-train a -o b --bits x",
    ],
)
def test_a_wrong_command_is_seen(wrong: str) -> None:
    assert fault(wrong) is not None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a dead link or anchor, or a page that the navigation leaves out, fails."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def build(tree: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "DLQAT_REPOSITORY": "https://example.org/dlqat", "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, env=environment)


def test_the_reference_is_the_code(built: Path) -> None:
    """Every option of every verb, every public name; nothing is loaded from other sites."""
    commands, python, first = (
        (built / name / "index.html").read_text() for name in ("reference/commands", "reference/python", ".")
    )
    for verb, (module, _) in VERBS.items():
        parser: Any = typer.main.get_command(app) if (app := getattr(import_module(module), "app", None)) else None
        for param in parser.params if parser else ():
            named = [name for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]
            assert [name for name in named if name not in commands and name != "--help"] == [], verb
    assert all(f'id="dlqat{name.lower()}"' in python for name in dlqat.__all__)
    assert (
        "https://example.org/dlqat/blob/main/src/dlqat/families.py" in (built / "families" / "index.html").read_text()
    )
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', first)
    assert loaded == []


def test_dead_links_fail_the_build(tmp_path: Path) -> None:
    for name in (
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "benchmarks",
        "src",
        "tests",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "faq.md").open("a") as page:
        page.write("\n[x](nowhere.md) [x](training.md#nobody)\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert all(target in done.stdout + done.stderr for target in ("nowhere.md", "#nobody"))
    with (tmp_path / "docs" / "faq.md").open("a") as page:
        page.write("\n[x](../src/dlqat/nothing.py)\n")
    assert (
        "faq.md: ../src/dlqat/nothing.py does not exist"
        in (done := build(tmp_path, tmp_path / "out")).stdout + done.stderr
    )
