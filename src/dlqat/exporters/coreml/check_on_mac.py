# SPDX-License-Identifier: Apache-2.0
"""Whether Apple's Core ML computes this model. Run on a Mac (macOS 15 or newer), beside the package and golden.npz.

    pip install coremltools numpy
    python check_on_mac.py

For each choice of compute units it loads the package, feeds golden.npz (a prompt at once, then token by token) and
compares the logits with those that plain PyTorch gave in float32. Exit code 0: all agree. KL is in nats.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
KL_MAX = 1e-3
"""Float16 rounding alone gives about 1e-4 (dlqat's float16 interpreter); ten times that needs an explanation."""


def predict(model: Any, ids: Any, prefill: int) -> tuple[Any, list[float]]:
    """Logits float32 [len(ids), vocab] and the seconds of each step."""
    state, rows, seconds, done = model.make_state(), [], [], 0
    for step in [ids[:prefill], *(ids[i : i + 1] for i in range(prefill, len(ids)))]:
        done += len(step)
        inputs = {
            "inputIds": np.asarray(step, np.int32)[None],
            "causalMask": np.zeros((1, 1, 1, done + 1), np.float16),
        }
        start = time.perf_counter()
        rows.append(np.asarray(model.predict(inputs, state=state)["logits"][0], np.float32))
        seconds.append(time.perf_counter() - start)
    return np.concatenate(rows), seconds


def compare(want: Any, got: Any) -> tuple[float, float]:
    """(largest KL(want || got) of a position, share of positions with the same most likely token)."""
    a, b = (x - x.max(-1, keepdims=True) for x in (want, got))
    a, b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (a, b))
    kl = (np.exp(a) * (a - b)).sum(-1)
    return float(np.nan_to_num(kl, nan=np.inf).max()), float((want.argmax(-1) == got.argmax(-1)).mean())


def main() -> int:
    """Check every choice of compute units; the exit code."""
    import coremltools as ct

    golden = np.load(HERE / "golden.npz")
    ids, want, prefill = golden["ids"], golden["logits"].astype(np.float64), int(golden["prefill"])
    failed = 0
    for units in UNITS:
        start = time.perf_counter()
        try:
            model = ct.models.MLModel(str(HERE / "model.mlpackage"), compute_units=getattr(ct.ComputeUnit, units))
            load = time.perf_counter() - start
            predict(model, ids, prefill)  # the first run of a shape compiles it
            got, seconds = predict(model, ids, prefill)
        except Exception as error:  # noqa: BLE001 - coremltools raises RuntimeError, NSError texts and others
            print(f"{units:12} FAILED to run: {' '.join(str(error).split())[:300]}")
            failed += 1
            continue
        kl, same = compare(want, got.astype(np.float64))
        good = kl <= KL_MAX
        failed += not good
        print(
            f"{units:12} {'agrees' if good else 'DIFFERS'}: KL max {kl:.1e} (limit {KL_MAX:.0e}), top-1 {same:.0%}; "
            f"load {load:.1f} s, prefill {prefill} tokens {seconds[0] * 1e3:.0f} ms, "
            f"a token {float(np.median(seconds[1:] or [0])) * 1e3:.1f} ms"
        )
        print(f"{'':12} placement: {placement(ct, model, units)}")
    return 1 if failed else 0


def placement(ct: Any, model: Any, units: str) -> str:
    """How many operations Core ML prefers to run where (MLComputePlan)."""
    try:
        plan = ct.models.compute_plan.MLComputePlan.load_from_path(
            path=model.get_compiled_model_path(), compute_units=getattr(ct.ComputeUnit, units)
        )
        counts: dict[str, int] = {}
        for function in plan.model_structure.program.functions.values():
            for operation in function.block.operations:
                usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
                if usage is not None:
                    name = (
                        type(usage.preferred_compute_device).__name__.removeprefix("ML").removesuffix("ComputeDevice")
                    )
                    counts[name] = counts.get(name, 0) + 1
        return ", ".join(f"{count} on {name}" for name, count in sorted(counts.items())) or "unknown"
    except Exception as error:  # noqa: BLE001 - the plan is a courtesy: its absence fails nothing
        return f"not available ({' '.join(str(error).split())[:120]})"


if __name__ == "__main__":
    sys.exit(main())
