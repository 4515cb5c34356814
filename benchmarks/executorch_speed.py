# SPDX-License-Identifier: Apache-2.0
"""Our .pte beside ExecuTorch's own recipe for the same integers and beside our ONNX artifact: time, memory, bytes.

    python benchmarks/executorch_speed.py [--folded model_dir/folded] [--stock stock.pte] [--layers 4] [--threads 1 2]

The recipe is that of _stock_executorch.py. Its lowering takes minutes, so the file can be made once and given with
--stock; --layers takes the first layers of the model, for all contestants alike. Processes of one model each take
turns (_race.py). Seconds of an export are CPU time, child processes (flatc) included.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import Results, base_model
from _race import measure
from _stock_executorch import CONTEXT, first_layers, lower

from dlqat.exporters import pipeline
from dlqat.exporters.executorch import target as executorch_target
from dlqat.exporters.onnx import target as onnx_target
from dlqat.exporters.target import Target
from dlqat.folded import disk

STOCK = "stock recipe"


def timed(name: str, work: Callable[[], object]) -> float:
    """Seconds of CPU time, which a busy machine does not stretch much; child processes (flatc) count."""
    began, wall = cpu_seconds(), time.perf_counter()
    work()
    spent = cpu_seconds() - began
    print(
        f"{name}: written in {spent:.0f} s of CPU time, {time.perf_counter() - wall:.0f} s on this machine", flush=True
    )
    return round(spent, 1)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folded", type=Path, help="a folded/ folder; default: SmolLM2-135M, rounded to nearest")
    parser.add_argument("--stock", type=Path, help="the recipe's .pte, made before; default: lower it now")
    parser.add_argument("--layers", type=int, default=0, help="only the first layers; 0: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folded = options.folded or base_model() / "folded"
    model = first_layers(disk.read(folded), options.layers)
    results = Results("executorch_speed")
    depth = f"{options.layers} layers" if options.layers else "all layers"
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        paths = {
            "dlqat executorch": home / "xnnpack" / "model.pte",
            "dlqat onnx ort": home / "ort",
            STOCK: options.stock or home / "stock.pte",
        }

        def ours(target: Target[Any], form: str) -> Callable[[], object]:
            return lambda: pipeline.write(target, model, folded, home / form, target.Options(CONTEXT, form))

        written = {
            "dlqat executorch": timed("dlqat executorch", ours(executorch_target, "xnnpack")),
            "dlqat onnx ort": timed("dlqat onnx ort", ours(onnx_target, "ort")),
        }
        if options.stock is None:
            written[STOCK] = timed(STOCK, lambda: lower(model, paths[STOCK]))
        for threads in options.threads:
            for contestant, row in measure(paths, STOCK, threads, options.rounds).items():
                key = f"{contestant}, {depth}, {threads} thread{'s'[: threads > 1]}"
                results.add(key, {**row, "export_cpu_s": written.get(contestant)})
                print(key, results.rows[key], flush=True)


if __name__ == "__main__":
    main()
