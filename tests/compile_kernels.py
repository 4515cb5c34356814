# SPDX-License-Identifier: Apache-2.0
"""Compile every kernel for GPUs that are not here, and print what each one uses, as JSON lines.

A program of its own: kernels imported under Triton's interpreter cannot be compiled. Registers, spills and
shared memory are read from the binary itself (cuobjdump of the Triton wheel; the metadata in AMD's assembly).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dlqat.trainer.kernels import triton as launch
from dlqat.trainer.kernels.triton_activation import fake_quant_kernel
from dlqat.trainer.kernels.triton_backward import weight_backward_kernel
from dlqat.trainer.kernels.triton_forward import weight_forward_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
GRID = {"QMIN": -8, "QMAX": 7, "POWER_OF_TWO": False, "BASE_UNIT": 0.125, "GROUP": 32, "RANK": 16}
WEIGHTS = {"scales": "*fp32", "zero_points": "*i8", "magnitude": "*fp32", "lora_a": "*fp32", "lora_b": "*fp32"}
INTEGERS = ("out_features", "in_features", "groups", "parts", "rank", "features")


def cases(nvidia: bool) -> dict[str, tuple[Any, dict[str, str], dict[str, Any], int]]:
    """name -> kernel, types of its tensors, constants, warps: what dlqat.trainer.kernels.triton launches.
    bf16, int4 in groups of 32 with zero-points and rank 16; `prepared` adds offsets."""
    bf16 = {"weight": "*bf16", "made": "*bf16", **WEIGHTS}
    sums = {f"grad_{n}": "*fp32" for n in ("magnitude", "a", "b")}
    tiles = launch.NVIDIA if nvidia else launch.OTHERS
    ahead, back = tiles
    exact = {"NVIDIA": nvidia, "DOT": "tf32x3" if nvidia else "ieee"}
    forward, backward = ({**GRID, **exact, "GROUPS": t.columns // 32, "ROWS": t.rows, "STEPS": t.steps} for t in tiles)
    return {
        "forward": (weight_forward_kernel, bf16, forward, ahead.warps),
        "forward, prepared, base 8": (
            weight_forward_kernel, {**bf16, "weight": "*i8", "offset": "*i8"}, forward, ahead.warps
        ),
        "backward": (weight_backward_kernel, {"g": "*bf16", **bf16, **sums}, backward, back.warps),
        "backward, scales": (
            weight_backward_kernel, {"g": "*bf16", **bf16, **sums, "grad_scales": "*fp32"}, backward, back.warps
        ),
        "activation": (fake_quant_kernel, {"x": "*bf16", "made": "*bf16"}, {"BLOCK": 4096}, 8),
    }  # fmt: skip


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, target: GPUTarget) -> Any:
    """The kernel for `target`; arguments without a type are None, sizes and pointers multiples of 16."""
    signature: dict[str, str] = {}
    fixed: dict[tuple[int], Any] = {}
    aligned: dict[tuple[int], Any] = {}
    for place, name in enumerate(kernel.arg_names):
        if name in types or name in INTEGERS:
            signature[name] = types.get(name, "i32")
            if name not in ("groups", "parts"):
                aligned[(place,)] = [["tt.divisibility", 16]]
        elif name in ("scaling", "lsq"):
            signature[name] = "fp32"
        else:
            signature[name] = "constexpr"
            fixed[(place,)] = constants.get(name)
    source = ASTSource(kernel, signature, fixed, aligned)
    return triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": False})


def resources(binary: Any) -> dict[str, int]:
    """Registers a thread, spilled registers (AMD) or bytes of stack (NVIDIA), shared memory in bytes."""
    shared = int(binary.metadata.shared)
    if "amdgcn" in binary.asm:
        text = binary.asm["amdgcn"]
        found = {k: int(v) for k, v in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", text)}
        spills = found["vgpr_spill_count"] + found["sgpr_spill_count"]
        return {"registers": found["vgpr_count"], "spills": spills, "shared": shared}
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "registers": int(re.findall(r"REG:(\d+)", text)[-1]),
        "spills": int(re.findall(r"STACK:(\d+)", text)[-1]) + int(re.findall(r"LOCAL:(\d+)", text)[-1]),
        "shared": shared,
    }


def contractions(binary: Any) -> int:
    """x * y + z in one rounding. AMD's own instructions are no witness: an IEEE division is made of them."""
    if "ptx" in binary.asm:
        return len(re.findall(r"fma\.rn", binary.asm["ptx"]))
    return len(re.findall(r"llvm\.fma|fmuladd| contract ", binary.asm["llir"]))


def main(targets: list[str]) -> None:
    for target in targets or TARGETS:
        for name, (kernel, types, constants, warps) in cases(TARGETS[target].backend == "cuda").items():
            binary = compiled(kernel, types, constants, warps, TARGETS[target])
            fused = contractions(binary) if kernel is fake_quant_kernel else 0
            row = {"kernel": name, "target": target, **resources(binary), "fused multiply-adds": fused}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
