# SPDX-License-Identifier: Apache-2.0
"""coreml-reference: saved Core ML packages run by our own interpreter, on any machine.

It proves what a package says: its integers, its operations, its states, in float32 and under float16 rounding. It
does not prove what Apple's runtime makes of them; that is the device host-coreml, on a Mac.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlqat.devices import machine
from dlqat.devices.device import DeviceFailure, Session, Setting, Timings
from dlqat.devices.host import zipped_package
from dlqat.mil.blobs import Damaged

if TYPE_CHECKING:  # torch is for those who run something
    from dlqat.mil.interpreter import Interpreter, Precision

INPUTS = {"inputIds", "causalMask"}
STATES = {"keyCache", "valueCache"}
PRECISION: dict[str, Precision] = {"float": "float32", "float16": "float16"}


class CoremlReference:
    """Our interpreter of MIL programs."""

    name = "coreml-reference"
    formats = ("coreml",)

    def available(self) -> str | None:
        if find_spec("google") is None or find_spec("google.protobuf") is None:
            return "protobuf not installed; pip install 'dlqat[coreml]'"
        return None

    def settings(self, program: Path, threads: int) -> tuple[Setting, ...]:
        del program
        return Setting("float", False, threads), Setting("float16", False, threads)

    def conditions(self, program: Path, setting: Setting) -> tuple[Setting, ...]:
        del program, setting
        return ()

    def open(self, program: Path, setting: Setting) -> Session:
        return ReferenceSession(program, setting)

    def evaluate(
        self, program: bytes, batches: Sequence[Mapping[str, NDArray[Any]]], setting: Setting
    ) -> list[NDArray[np.float32]]:
        """`program`: a package as a zip file (zipped_package.py)."""
        with zipped_package.unpacked(program) as package:
            small = _load(package, PRECISION[setting.activations])
            return [_run(small, batch, None)[small.function.outputs[0]] for batch in batches]


class ReferenceSession:
    """A decoder with its cache as two states, batch 1."""

    def __init__(self, program: Path, setting: Setting) -> None:
        self._setting, self.timings = setting, Timings()
        start = time.perf_counter()
        self._program = _load(program, PRECISION[setting.activations])
        self.timings.load_seconds = time.perf_counter() - start
        inputs = self._program.function.inputs
        if set(inputs) != INPUTS | STATES:
            raise DeviceFailure(f"{program.name} has the inputs {', '.join(inputs)}; a decoder of ours has others")
        self._context = inputs["keyCache"].shape[3] or 0
        self._vocab = self._vocabulary()
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        self._length, self._state = 0, self._program.make_state()

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens: the program reads its states up to a length and writes the next there."""
        self._length = min(length, self._length)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(token_ids), vocab]; DeviceFailure if the text outgrows the cache."""
        ids = np.asarray(token_ids, np.int32)[None]
        total = self._length + ids.shape[1]
        if total > self._context:
            raise DeviceFailure(f"{total} tokens do not fit into the cache of {self._context}")
        mask = np.zeros((1, 1, 1, total + 1), np.float16)
        start = time.perf_counter()
        found = _run(self._program, {"inputIds": ids, "causalMask": mask}, self._state)["logits"][0]
        self.timings.count(ids.shape[1], time.perf_counter() - start)
        self._length = total
        return found

    def _vocabulary(self) -> int:
        made = self._program.function.producer["logits"].types[0].shape
        return made[-1] or 0

    def facts(self) -> Mapping[str, Any]:
        """What ran; Apple's runtime did not."""
        return machine.facts() | {
            "runtime": "dlqat's interpreter of MIL programs",
            "precision": self._program.precision,
            "not_verified": {"Apple hardware": "an interpreter ran, not Core ML; run check_on_mac.py on a Mac"},
            "vocabulary": self._vocab,
            "threads": self._setting.threads,
            "operations": dict(sorted(Counter(o.kind for o in self._program.function.operations).items())),
        }

    def close(self) -> None:
        """Free the weights and the cache."""
        del self._program
        self._state = {}


def _load(path: Path, precision: Precision) -> Interpreter:
    from dlqat.mil.call import Unsupported
    from dlqat.mil.interpreter import Interpreter
    from dlqat.mil.program import Package

    try:
        return Interpreter(Package(path), precision)
    except (Damaged, Unsupported) as error:
        raise DeviceFailure(f"{path.name}: {error}") from error


def _run(
    program: Interpreter, inputs: Mapping[str, NDArray[Any]], state: dict[str, Any] | None
) -> dict[str, NDArray[np.float32]]:
    from dlqat.mil.call import Unsupported

    try:
        return {name: value.float().numpy() for name, value in program.run(inputs, state).items()}
    except (Damaged, Unsupported) as error:
        raise DeviceFailure(str(error)) from error
