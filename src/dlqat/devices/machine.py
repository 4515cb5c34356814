# SPDX-License-Identifier: Apache-2.0
"""The machine under a device: what decides which kernels a runtime picks."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dlqat import atomic

TELLING = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "asimdhp", "i8mm", "sve", "sme", "bf16"}
"""CPU features that change the kernels of a quantized multiplication."""


def facts() -> dict[str, Any]:
    """Machine, CPU model and the CPU features that decide which kernels run (empty where not knowable)."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in info.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    cpu = fields.get("model name") or platform.processor()
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": cpu,
        "cpu_features": sorted(flags & TELLING),
    }


def build(files: Iterable[Path]) -> str:
    """Sixteen hex digits of programs and libraries: which build runs, where its version does not tell."""
    found = sorted(f"{file.name} {atomic.sha256(file)}" for file in files if file.is_file())
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def is_arm() -> bool:
    """Whether this is a 64-bit Arm CPU (a real one or an emulated one)."""
    return platform.machine() in ("aarch64", "arm64")


def kleidiai() -> str:
    """Whether onnxruntime's Arm kernels (KleidiAI, other int8 rounding than x86) can be what runs."""
    if not is_arm():
        return f"no, {platform.machine()}"
    return "if this build of onnxruntime has it; mlas.disable_kleidiai turns it off"
