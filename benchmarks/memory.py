# SPDX-License-Identifier: Apache-2.0
"""Memory and time of the road behind training, in the shapes of released models with random weights.

    python benchmarks/memory.py [SHAPE ...] [--only STEP]      # a folder for some GB: DLQAT_SCRATCH

Per shape: fold (rounding to nearest), export to every target, L0 alone and `dlqat-check --quick`. Each is a process of its
own. Counted is anonymous memory (RssAnon), sampled 50 times a second, of the process and, apart, of the runtimes that it
starts: pages of mapped files go when somebody else needs them. `resident` is what `top` shows at most (VmHWM).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import Results, command, smollm2
from safetensors.torch import save_file

from dlqat import source

LIMIT = 10_000_000
"""KB of anonymous memory at which a process is stopped: this machine has other work."""
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
    },
    "qwen3-4b": {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
    },
}
SHAPES["llama-3.1-8b, 2 layers"] = {**SHAPES["llama-3.1-8b"], "num_hidden_layers": 2}
"""For a disk that does not hold the whole: the peak is that of a layer, of the embedding or of the head."""
TARGETS: dict[str, tuple[str, ...]] = {
    "onnx-qdq": ("--target", "onnx"),
    "onnx-ort": ("--target", "onnx", "--form", "ort"),
    "onnx-web": ("--target", "onnx", "--form", "web"),
    "executorch": ("--target", "executorch"),
    "coreml": ("--target", "coreml"),
    "gguf": ("--target", "gguf"),
    "mlx": ("--target", "mlx"),
}
CONTEXT = ("--max-context", "256")
"""The cache is the runtime's, and it is not what is measured."""


@dataclass
class Measured:
    """One process, and those that it started."""

    seconds: float
    anonymous: float
    children: float
    resident: float
    cpu: float
    code: int
    said: str

    def row(self) -> dict[str, Any]:
        found = {
            "anonymous_gb": round(self.anonymous, 2),
            "resident_gb": round(self.resident, 2),
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu, 1),
        }
        if self.children > 0.05:
            found["runtime_gb"] = round(self.children, 2)
        return found if not self.code else {**found, "exit": self.code, "said": self.said}


def measured(words: list[str]) -> Measured:
    """Run a command. Its anonymous memory, that of all below it, and what it said last if it failed."""
    start, most, before = time.monotonic(), [0, 0, 0], os.times()
    with tempfile.TemporaryFile() as said:
        made = subprocess.Popen(words, stdout=said, stderr=said)
        while made.poll() is None:
            found = _memory(made.pid)
            below = sum(_memory(pid)[0] for pid in _below(made.pid))
            most = [max(a, b) for a, b in zip(most, (found[0], below, found[1]), strict=True)]
            if found[0] + below > LIMIT:
                made.kill()
            time.sleep(0.02)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    gb, after = [x * 1024 / 1e9 for x in most], os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(time.monotonic() - start, gb[0], gb[1], gb[2], cpu, made.returncode, " ".join(lines[-2:])[-300:])


def _memory(pid: int) -> tuple[int, int]:
    """(RssAnon, VmHWM) in KB; zeros of a process that has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return tuple(int(status.partition(f"{key}:")[2].split()[0]) for key in ("RssAnon", "VmHWM"))  # pyright: ignore[reportReturnType]
    except (OSError, IndexError):
        return 0, 0


def _below(pid: int) -> list[int]:
    try:
        found = [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except OSError:
        return []
    return found + [inner for one in found for inner in _below(one)]


def float_model(name: str, folder: Path) -> Path:
    """A Hugging Face folder in the shape, bfloat16, a shard a block; made once."""
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(**SHAPES[name])
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    shards: dict[str, list[str]] = {}
    for parameter in shapes:
        words = parameter.split(".")
        shards.setdefault(f"model-{words[2] if words[1] == 'layers' else 'rest'}.safetensors", []).append(parameter)
    torch.manual_seed(0)
    for file, names in shards.items():
        save_file({n: _random(shapes[n]) for n in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: file for file, names in shards.items() for n in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    source.load(source.resolve(smollm2())).tokenizer.save_pretrained(folder)
    generation = {"eos_token_id": 2, "bos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    kept = {**SHAPES[name], **generation, "dtype": "bfloat16", "architectures": [type(config).__name__]}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    """Random numbers, the same again every few million: their making is not what is measured."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    found = torch.empty(shape, dtype=torch.bfloat16)
    rows = min(shape[0], max(1, (1 << 22) // shape[1]))
    some = (torch.randn(rows, shape[1]) * 0.02).bfloat16()
    for first in range(0, shape[0], rows):
        found[first : first + rows] = some[: shape[0] - first]
    return found


def model_dir(model: Path, folder: Path) -> Path:
    """What `dlqat-train --method rtn` leaves, with scales of the largest weight: nobody searches random numbers."""
    from dlqat import adapter
    from dlqat.folded import disk
    from dlqat.model_dir import ADAPTERS, RECORD
    from dlqat.terminal import Terminal
    from dlqat.trainer import compose, opened
    from dlqat.trainer.request import record

    if (folder / ADAPTERS).exists():
        return folder
    request = compose.request(str(model), folder, (), method="rtn")
    origin = opened.origin(request, Terminal(quiet=True))
    folder.mkdir(parents=True, exist_ok=True)
    disk.copy_tokenizer(model, folder)
    (folder / RECORD).write_text(json.dumps(record(request, origin, [])))
    weights = source.weights(origin)
    matrices = [n for n in weights if n.endswith(".weight") and weights[n].ndim == 2]
    tensors: dict[str, torch.Tensor] = {}
    for name in matrices:
        module = name.removesuffix(".weight")
        if (spec := request.recipe.spec(module)) is not None:
            tensors[f"{module}.scales"] = _scales(weights[name], spec.grid)
    adapter.write(tensors, folder / ADAPTERS)
    return folder


def _scales(weight: torch.Tensor, grid: Any) -> torch.Tensor:
    groups = grid.groups(weight.shape[1])
    largest = weight.unflatten(1, (groups, -1)).abs().amax(-1).float()
    return grid.round_scales(largest / -grid.qmin)


def steps(name: str, scratch: Path) -> dict[str, list[str]]:
    """What is measured of a shape, in order: each needs what is before it."""
    work = scratch / name
    folded, out = work / "model_dir" / "folded", work / "out"
    fold = "import sys; from pathlib import Path; from dlqat.exporters.fold import fold; fold(Path(sys.argv[1]))"
    found = {"fold": [sys.executable, "-c", fold, str(work / "model_dir")]}
    for target, words in TARGETS.items():
        folder = out / target
        found[f"export {target}"] = command("exporters.cli", folded, *words, *CONTEXT, "-o", folder, "--no-verify")
        check = command("runtime_tests.cli", folder, "--reference", folded, "--output", work / "reports" / target)
        found[f"L0 {target}"] = [*check, "--level", "L0"]
        found[f"quick {target}"] = [*check, "--quick"]
    return found


def main() -> None:
    words = sys.argv[1:]
    only = words[words.index("--only") + 1].split(",") if "--only" in words else None
    results = Results(
        os.environ.get("DLQAT_MEMORY_NAME", "memory"),
        Path(os.environ["DLQAT_MEMORY_FOLDER"]) if "DLQAT_MEMORY_FOLDER" in os.environ else None,
    )
    scratch = Path(os.environ.get("DLQAT_SCRATCH", tempfile.gettempdir())) / "dlqat-memory"
    for name in [w for w in words if w in SHAPES] or list(SHAPES)[:1]:
        work = scratch / name
        model_dir(float_model(name, work / "model"), work / "model_dir")
        for step, run in steps(name, scratch).items():
            if only is not None and not any(step.startswith(o) for o in only):
                continue
            row = measured(run).row()
            results.add(f"{name} {step}", row)
            print(name, step, row, flush=True)
        if "--keep" not in words:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
