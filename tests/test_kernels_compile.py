# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for NVIDIA and AMD without a GPU, and keeps its tile in registers (or nearly)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux only")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx90a", "gfx942"])
def test_every_kernel_compiles_and_spills_no_more_than_is_known(tmp_path: Path, target: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).parent / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, str(script), target], capture_output=True, text=True, env=environment, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 5 and {r["target"] for r in rows} == {target}
    for row in rows:
        assert row["spills"] <= allowed(row["kernel"], target), row
        # x * y + z in one rounding would move ties: bit-equality with the reference forbids it.
        assert row["fused multiply-adds"] == 0, row


def allowed(kernel: str, target: str) -> int:
    """Bytes of stack on NVIDIA: the backward keeps some of its tile there, and was still faster on an H200 than in any
    smaller tile. Registers on AMD: trained scales (L4Q, a corner) hold one more tile."""
    if target.startswith("sm_"):
        return 640 if kernel.startswith("backward") else 0
    return 64 if kernel == "backward, scales" else 0
