# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode of our two ONNX forms beside onnxruntime-genai's own model builder and llama.cpp.

    python benchmarks/onnx_speed.py [--threads 1 2]

SmolLM2-135M, int4 symmetric g32 blocks, int8 head, prompt of 256 random tokens, 64 decoded; processes of one
model each take turns (_race.py). Ratios are to the builder's model with `prune_lm_head`, which like ours makes the logits of
the last token only; its default makes all 256 rows. llama.cpp joins if llama-cpp-python is installed (Q4_0, quantized
here).
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import Results, base_model, command, smollm2
from _race import measure

from dlqat import source

BUILDER = "genai builder, last logits"


def exports(home: Path) -> dict[str, Path]:
    """Our two forms and the builder's model, each written by its own command."""
    loaded = source.load(source.resolve(smollm2()))
    loaded.files(home / "files")
    loaded.model.save_pretrained(home / "files")  # what the builder reads
    ours = command("exporters.cli", base_model(), "--no-verify", "--form")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(home / "files"), "-p", "int4"]
    extra = ["-e", "cpu", "--extra_options", "block_size=32"]
    extra += ["is_symmetric=true", "algo_config=rtn_last", "accuracy_level=4"]
    commands = {
        "dlqat qdq": ([*ours, "qdq", "-o", str(home / "qdq")], home / "qdq"),
        "dlqat ort": ([*ours, "ort", "-o", str(home / "ort")], home / "ort"),
        "genai builder": ([*builder, "-o", str(home / "builder"), *extra], home / "builder"),
        BUILDER: ([*builder, "-o", str(home / "pruned"), *extra, "prune_lm_head=true"], home / "pruned"),
    }
    for name, (words, _) in commands.items():
        began = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        print(f"{name}: exported in {time.perf_counter() - began:.0f} s", flush=True)
    return {name: folder for name, (_, folder) in commands.items()}


def q4_0(home: Path) -> Path | None:
    """Q4_0 with an 8-bit head from the wheel's Q4_1, by llama.cpp itself; None if llama-cpp-python is not here."""
    try:
        import llama_cpp
    except ImportError:
        return None
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = 2, True  # LLAMA_FTYPE_MOSTLY_Q4_0
    options.token_embedding_type = options.output_tensor_type = 8  # GGML_TYPE_Q8_0
    made = home / "q4_0.gguf"
    code = llama_cpp.llama_model_quantize(smollm2().encode(), str(made).encode(), ctypes.byref(options))
    return made if code == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results = Results("onnx_speed")
    with tempfile.TemporaryDirectory() as folder:
        paths = exports(Path(folder))
        if (file := q4_0(Path(folder))) is not None:
            paths["llama.cpp Q4_0"] = file
        for threads in options.threads:
            for name, row in measure(paths, BUILDER, threads, options.rounds).items():
                results.add(f"{name}, {threads} thread{'s'[: threads > 1]}", row)
                print(name, threads, row, flush=True)


if __name__ == "__main__":
    main()
