# SPDX-License-Identifier: Apache-2.0
"""dlqat-eval on a real model: accuracy of artifacts beside their reference, and what it costs in time.

    python benchmarks/eval.py [--model demo/model] [--questions 200] [--tokens 16384] [--threads 1]

Every artifact of a model folder that a host runtime runs (model_dir/onnx, model_dir/executorch), one after the other as
a user would: the second one finds the reference's answers already given. Answers are kept in .cache/benchmark-eval, so a
run that was killed goes on; `cost` is that of the last run only. Seconds are wall clock; `load` is how many processes
wanted a core meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from _common import DATA, HERE, Results, lacks, text

DEVICES = {"onnx": "host-ort", "executorch": "host-executorch"}
TASKS = ("arc_easy", "piqa")


def measure(artifact: Path, device: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The content of dlqat-eval's result."""
    asked = ["--tasks", ",".join(TASKS), "--data", DATA, "--limit", given.questions]
    asked += ["--text", text("wikitext-2/test.txt"), "--tokens", given.tokens, "--threads", given.threads]
    command = [sys.executable, "-m", "dlqat.runtime_tests.eval_cli", artifact, "--device", device, *asked]
    subprocess.run([*map(str, command), "--output", str(folder)], check=True)
    return json.loads((folder / f"eval-{device}.json").read_text(encoding="utf-8"))


def row(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of it."""
    return {
        "setting": found["setting"],
        "text": {k: v for k, v in found["text"].items() if k != "file"},
        "tasks": found["tasks"],
        "cost": found["cost"],
        "seconds": found["seconds"],
        "load": round(os.getloadavg()[1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE.parent / "demo" / "model")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    known = {form: device for form, device in DEVICES.items() if (given.model / form).is_dir()}
    if not known:
        lacks(f"{given.model} has no artifacts; run: make demo")
    results, folder = Results("eval"), HERE.parent / ".cache" / "benchmark-eval"
    folder.mkdir(parents=True, exist_ok=True)
    for form, device in known.items():
        results.add(f"{form} on {device}", row(measure(given.model / form, device, given, folder)))


if __name__ == "__main__":
    main()
