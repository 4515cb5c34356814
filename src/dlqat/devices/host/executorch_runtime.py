# SPDX-License-Identifier: Apache-2.0
"""ExecuTorch's C++ runtime out of its wheel: the bindings and two libraries of kernels, and nothing else of it.

The wheel's own front door (`executorch.runtime`, `executorch.extension.llm.custom_ops`) imports the export stack and
torch's compiler first: 3.6 s on a desktop before a program is loaded, and minutes on an emulated CPU. The bindings
need torch only, and kernels add themselves to the runtime when their library is loaded.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dlqat.devices import executorch_options
from dlqat.devices.device import DeviceFailure

KERNELS = (
    ("lib/*executorch_kernels_quantized.*", "kernels/quantized/*quantized_ops_aot_lib.*"),
    ("extension/llm/custom_ops/*custom_ops_aot_lib.*",),
)
"""Kernels of quantized_decomposed (the first without torch, where a wheel has it) and of llama."""
BINDINGS = ("_C", "_portable_lib")
"""The module of the bindings: since 1.5, and before."""


@dataclass(frozen=True, eq=False)
class Program:
    """A loaded program. Its methods keep what they need of it."""

    bindings: Any
    names: frozenset[str]
    data: bytes | None
    """The bytes it was loaded from: the runtime reads them as long as it runs."""

    def method(self, name: str) -> Any:
        """The method `name`: a call with a list of tensors returns a list. DeviceFailure if it does not load."""
        try:
            with silence():
                return self.bindings.load_method(name)
        except RuntimeError as error:
            raise DeviceFailure(f"executorch does not load {name}: {line(error)}") from error


def load(program: Path | bytes, threads: int, options: Mapping[str, str] | None = None) -> Program:
    """Load a program and give the process's thread pool `threads` threads. DeviceFailure if the runtime refuses.

    `options` of XNNPACK, by its own names, hold for this program; without them they are as the wheel has them.
    """
    with silence():
        try:
            runtime = _runtime()
            executorch_options.apply(wheel(), options or {})
            runtime._unsafe_reset_threadpool(threads)  # noqa: SLF001 there is no other name for it
            check = runtime.Verification.InternalConsistency
            if isinstance(program, Path):
                found = runtime._load_program(str(program), program_verification=check)  # noqa: SLF001
            else:
                found = runtime._load_program_from_buffer(program, program_verification=check)  # noqa: SLF001
        except RuntimeError as error:
            raise DeviceFailure(f"executorch does not load it: {line(error)}") from error
    names = frozenset(found.get_method_name(i) for i in range(found.num_methods()))
    return Program(found, names, program if isinstance(program, bytes) else None)


@cache
def _runtime() -> Any:
    """The bindings, with our kernels registered."""
    importlib.import_module("torch")  # brings the libraries that the bindings are linked to
    folder = wheel() / "extension" / "pybindings"
    name = next((n for n in BINDINGS if any(folder.glob(f"{n}.*"))), BINDINGS[0])
    bindings = importlib.import_module(f"executorch.extension.pybindings.{name}")
    for patterns in KERNELS:
        found = [path for pattern in patterns for path in sorted(wheel().glob(pattern))]
        if not found:
            raise DeviceFailure(f"executorch in {wheel()} has no {' or '.join(patterns)}; install 'dlqat[executorch]'")
        ctypes.CDLL(str(found[0]))
    return bindings


def wheel() -> Path:
    """Where executorch is installed. DeviceFailure if it is not."""
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise DeviceFailure("executorch is not installed; pip install 'dlqat[executorch]'")
    return Path(next(iter(spec.submodule_search_locations)))


@contextmanager
def silence() -> Generator[None]:
    """The runtime writes about the machine to stderr, below Python: what it finds wrong comes as an exception, too."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def line(error: Exception) -> str:
    """An exception of the runtime as one line."""
    return " ".join(str(error).split())[:400]
