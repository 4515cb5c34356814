# SPDX-License-Identifier: Apache-2.0
"""Which tiles of the Triton kernels are fastest on this GPU: each of a short list, timed on a layer of a 7B model.

    python benchmarks/kernel_tiles.py [--results FOLDER]     every candidate; FOLDER/kernel_tiles.json
    python benchmarks/kernel_tiles.py --smoke                one candidate of each on a tiny layer, in Triton's interpreter

Candidates are compiled by several processes first (Triton keeps what it compiled on disk), then timed one by one with
triton.testing.do_bench: the median, the L2 cache emptied before each run. The choice is made by a person and written
into dlqat/trainer/kernels/triton.py: see there why it is not made while training.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
from dlqat.trainer.kernels import triton
from dlqat.trainer.kernels.triton import Tile

SHAPE, PROCESSES = (11008, 4096), 8
SMOKE = (64, 128)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--compile", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    if not options.smoke and not torch.cuda.is_available():
        print("benchmarks/kernel_tiles.py: no GPU here, nothing is measured (--smoke tries the code on a CPU)")
        return 2
    if options.compile is not None:
        for place, (_, run) in enumerate(candidates("cuda", SHAPE)):
            if place % PROCESSES == options.compile:
                _try(run)
        return 0
    if options.smoke:
        for name, run in list(candidates("cpu", SMOKE))[::10]:
            run()
            print(name)
        return 0
    words = [sys.executable, __file__, "--compile"]
    for process in [subprocess.Popen([*words, str(i)], stderr=subprocess.DEVNULL) for i in range(PROCESSES)]:
        process.wait()
    _measure(options.results)
    return 0


def _measure(folder: Path | None) -> None:
    import torch
    from _common import Results
    from triton.testing import do_bench

    found: dict[str, dict[str, Any]] = {}
    for name, run in candidates("cuda", SHAPE):
        failed = _try(run)
        found[name] = {"failed": failed} if failed else {"ms": do_bench(run, warmup=3, rep=25, return_mode="median")}
    results = Results("kernel_tiles", folder)
    results.add("gpu", {"name": torch.cuda.get_device_name(), "shape": SHAPE})
    for kind in ("copy", "forward", "backward"):
        rows = {k: r for k, r in found.items() if k.startswith(kind)}
        best = dict(sorted(rows.items(), key=lambda item: item[1].get("ms", 1e9)))
        results.add(kind, best)
        for name in [*best][:6]:
            print(name, best[name], flush=True)


def _try(run: Callable[[], object]) -> str:
    """What went wrong, in one line."""
    import torch

    try:
        run()
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 a tile that does not fit is a result
        return f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return ""


def candidates(device: str, shape: tuple[int, int]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name -> a run of the kernel with that tile."""
    import torch
    from _layers import dlqat

    m = dlqat(*shape, device)
    weight, adapter = m.weight.detach(), m.adapter()
    g, into = torch.randn_like(weight), torch.empty_like(weight)
    half = torch.bfloat16 if device == "cuda" else torch.float32

    def forward(tile: Tile) -> None:
        triton.NVIDIA = triton.OTHERS = (tile, tile)
        triton.weight_forward(weight, adapter, half)

    def backward(tile: Tile) -> None:
        triton.NVIDIA = triton.OTHERS = (tile, tile)
        triton.weight_backward(weight, adapter, g, half)

    yield "copy", lambda: into.copy_(weight)
    for tile in FORWARD:
        yield f"forward {tile}", lambda t=tile: forward(t)
    for tile in BACKWARD:
        yield f"backward {tile}", lambda t=tile: backward(t)


FORWARD = [Tile(*cut) for cut in [
    (32, 128, 1, 4), (128, 32, 1, 4), (32, 64, 1, 4), (64, 64, 1, 4), (64, 64, 1, 8), (16, 128, 1, 4), (32, 128, 4, 4)
]]  # fmt: skip
BACKWARD = [Tile(*cut) for cut in [
    (64, 64, 1, 4), (64, 64, 4, 4), (64, 64, 8, 4), (128, 32, 1, 4), (128, 32, 4, 4), (32, 64, 4, 4), (16, 128, 4, 4),
    (64, 32, 1, 4), (64, 32, 4, 4), (64, 128, 1, 8), (64, 128, 4, 8), (128, 64, 1, 8), (128, 64, 4, 8)
]]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
