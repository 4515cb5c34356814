# SPDX-License-Identifier: Apache-2.0
"""host-coreml: Apple's Core ML on this Mac, through coremltools' predict; each choice of compute units is a setting.

Not run by us: no Apple hardware was at hand. The code is the documented calls of coremltools 9.0 (MLModel.predict,
make_state, MLComputePlan); docs/coreml.md says what to run first on a Mac.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import machine
from dlqat.devices.device import DeviceFailure, Session, Setting, Timings
from dlqat.devices.host import zipped_package

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


class HostCoreml:
    """Core ML on macOS 15 or newer."""

    name = "host-coreml"
    formats = ("coreml",)

    def available(self) -> str | None:
        if platform.system() != "Darwin":
            return f"Core ML runs on macOS, this is {platform.system()}; Apple hardware: not verified"
        if int((platform.mac_ver()[0] or "0").partition(".")[0]) < 15:
            return f"states need macOS 15, this is {platform.mac_ver()[0]}"
        if importlib.util.find_spec("coremltools") is None:
            return "coremltools not installed; pip install 'dlqat[coreml]'"
        return None

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        del program
        return tuple(Setting("float16", True, threads, options=(("compute_units", units),)) for units in UNITS)

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program, setting
        return ()

    def open(self, program: Path, setting: Setting) -> Session:
        return CoremlSession(program, setting)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        """`program`: a package as a zip file (zipped_package.py)."""
        with zipped_package.unpacked(program) as package:
            model = _load(package, setting)
            results: list[NDArray[np.float32]] = []
            for batch in batches:
                fed = {n: v.astype(np.float16 if v.dtype.kind == "f" else np.int32) for n, v in batch.items()}
                results.append(next(iter(_predict(model, fed, None).values())).astype(np.float32))
            return results


class CoremlSession:
    """A package loaded for one choice of compute units, with its state."""

    def __init__(self, program: Path, setting: Setting) -> None:
        self._setting, self.timings = setting, Timings()
        start = time.perf_counter()
        self._model: Any = _load(program, setting)
        self.timings.load_seconds = time.perf_counter() - start
        self.reset()

    def reset(self) -> None:
        """A new state: an empty cache."""
        self._length, self._state = 0, self._model.make_state()

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens: the program reads its states up to a length and writes the next there."""
        self._length = min(length, self._length)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab]; DeviceFailure if Core ML refuses."""
        total = self._length + len(token_ids)
        inputs = {
            "inputIds": np.asarray(token_ids, np.int32)[None],
            "causalMask": np.zeros((1, 1, 1, total + 1), np.float16),
        }
        start = time.perf_counter()
        rows = _predict(self._model, inputs, self._state)["logits"][0]
        self.timings.count(len(token_ids), time.perf_counter() - start)
        self._length = total
        return rows.astype(np.float32)

    def facts(self) -> Mapping[str, Any]:
        """System, compute units, and where Core ML places the operations."""
        return machine.facts() | {
            "runtime": f"Core ML of macOS {platform.mac_ver()[0]}, coremltools {importlib.metadata.version('coremltools')}",
            **dict(self._setting.options),
            "placement": self._placement(),
            "load_seconds": self.timings.load_seconds,
        }

    def _placement(self) -> dict[str, int]:
        """Operations by the device that Core ML prefers for them (MLComputePlan)."""
        import coremltools as ct

        tools: Any = ct
        try:
            plan = tools.models.compute_plan.MLComputePlan.load_from_path(
                path=self._model.get_compiled_model_path(), compute_units=_units(self._setting)
            )
            found = Counter[str]()
            for function in plan.model_structure.program.functions.values():
                for operation in function.block.operations:
                    usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
                    if usage is not None:
                        found[type(usage.preferred_compute_device).__name__] += 1
            return dict(found)
        except Exception as error:
            raise DeviceFailure(f"no compute plan: {_line(error)}") from error

    def close(self) -> None:
        """Let go of the model."""
        self._model, self._state = None, None


def _units(setting: Setting) -> Any:
    import coremltools as ct

    return getattr(cast("Any", ct).ComputeUnit, dict(setting.options)["compute_units"])


def _load(path: Path, setting: Setting) -> Any:
    import coremltools as ct

    tools: Any = ct
    try:
        return tools.models.MLModel(str(path), compute_units=_units(setting))
    except Exception as error:  # coremltools passes NSError on as RuntimeError and others
        raise DeviceFailure(f"Core ML does not load it: {_line(error)}") from error


def _predict(model: Any, inputs: Mapping[str, NDArray[Any]], state: Any) -> dict[str, NDArray[Any]]:
    try:
        return model.predict(dict(inputs), state=state) if state is not None else model.predict(dict(inputs))
    except Exception as error:
        raise DeviceFailure(f"Core ML does not run it: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
