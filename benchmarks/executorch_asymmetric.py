# SPDX-License-Identifier: Apache-2.0
"""What zero-points and two-bit storage would cost on ExecuTorch: one linear [1536, 576] in four forms.

    python benchmarks/executorch_asymmetric.py

symmetric    XNNPACK's int4 groups of 32, as exported
correction   the same, plus the zero-points as a second product: sums of x over each group times (8 - z) * s, float32
4, 2 bits    weights looked up row by row with embedding_4bit / embedding_2bit, then a float32 product

CPU time of one call, median of many, forms taking turns in random order; one thread (docs/adr/0004).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Results

from dlqat.exporters.executorch import program
from dlqat.exporters.executorch.graph import TOKENS, PteGraph, Stored, Value
from dlqat.exporters.executorch.program import Method

OUT, INPUTS, GROUP = 1536, 576, 32
GROUPS = INPUTS // GROUP
RANDOM = np.random.default_rng(0)


def symmetric(g: PteGraph, x: Value) -> Value:
    g.store("w.codes", RANDOM.bytes(OUT * INPUTS // 2))
    g.store("w.scales", torch.full((OUT, GROUPS), 0.01, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes())
    weight = Stored("w.codes", (OUT, INPUTS), "int4", "w.scales", GROUP)
    rounded = g.xnn("Convert", [x], x.shape, int8=True)
    return g.xnn("FullyConnected", [rounded, weight, None], (1, TOKENS, OUT))


def correction(g: PteGraph, x: Value) -> Value:
    y = symmetric(g, x)
    ones = g.floats("ones", np.kron(np.eye(GROUPS, dtype=np.float32), np.ones((1, GROUP), np.float32)))
    shifts = g.floats("shifts", RANDOM.standard_normal((OUT, GROUPS)).astype(np.float32))
    sums = g.xnn("FullyConnected", [x, ones, None], (1, TOKENS, GROUPS))
    return g.xnn("Add", [y, g.xnn("FullyConnected", [sums, shifts, None], (1, TOKENS, OUT))], y.shape)


def looked_up(bits: int) -> Callable[[PteGraph, Value], Value]:
    def build(g: PteGraph, x: Value) -> Value:
        codes = g.integers("codes", RANDOM.integers(0, 255, (OUT, INPUTS * bits // 8), dtype=np.uint8))
        scales = g.floats("scales", np.full((OUT, GROUPS), 0.01, np.float32))
        rows = g.integers("rows", np.arange(OUT))
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        op = f"quantized_decomposed::embedding_{bits}bit.out"
        weight = g.kernel(op, [codes, scales, None, low, high, rows], (OUT, INPUTS))
        return g.xnn("FullyConnected", [x, weight, None], (1, TOKENS, OUT))

    return build


FORMS = {
    "symmetric": symmetric,
    "correction": correction,
    "4 bits looked up": looked_up(4),
    "2 bits looked up": looked_up(2),
}


def load(path: Path, build: Callable[[PteGraph, Value], Value]) -> Any:
    g, ids, position = PteGraph(), Value((1, TOKENS)), Value((1,))
    x = g.kernel(
        "aten::embedding.out",
        [g.floats("table", np.ones((8, INPUTS), np.float32)), ids, -1, False, False],
        (1, TOKENS, INPUTS),
    )
    method = Method("forward", g.nodes, g.caches, ids, position, build(g, x), 128)
    program.write(path, [method], g.data, {})
    return import_module("executorch.runtime").Runtime.get().load_program(str(path)).load_method("forward")


def main() -> None:
    for name in ("executorch.kernels.quantized", "executorch.extension.llm.custom_ops.custom_ops"):
        import_module(name)
    import_module("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(1)  # noqa: SLF001
    results = Results("executorch_asymmetric")
    with tempfile.TemporaryDirectory() as folder:
        methods = {name: load(Path(folder) / f"{i}.pte", build) for i, (name, build) in enumerate(FORMS.items())}
        for tokens in (1, 128):
            times: dict[str, list[float]] = {name: [] for name in methods}
            given = [torch.zeros(1, tokens, dtype=torch.long), torch.tensor([0])]
            for _ in range(100):
                for name in RANDOM.permutation(list(methods)):  # each after each: caches are as cold for all
                    began = time.process_time()
                    methods[name].execute(given)
                    times[name].append((time.process_time() - began) * 1e3)
            base = float(np.median(times["symmetric"]))
            for name, spent in times.items():
                row = {
                    "ms": round(float(np.median(spent)), 4),
                    "times_symmetric": round(float(np.median(spent)) / base, 2),
                }
                results.add(f"{name}, {tokens} tokens", row)
                print(name, tokens, row)


if __name__ == "__main__":
    main()
