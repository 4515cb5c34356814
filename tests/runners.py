# SPDX-License-Identifier: Apache-2.0
"""dlqat_runner built for this machine, with the libraries of the installed wheels: the source that a phone gets."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch

from dlqat.devices import setup
from dlqat.devices.device import Device, Setting
from dlqat.devices.host import executorch_runtime
from dlqat.devices.process import child
from dlqat.devices.process.child import Limits, Worker
from dlqat.runtime_tests.readers import read

SCRIPTS = Path(setup.__file__).parents[1] / "runner"


def onnxruntime(folder: Path) -> Path:
    """The folder with the runner and libonnxruntime.so."""
    headers = setup.home() / "arm64" / "include"
    if not (headers / "onnxruntime_cxx_api.h").is_file():
        pytest.skip(f"no headers of onnxruntime in {headers}; dlqat-devices --set-up qemu")
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    (library,) = (Path(found.origin).parent / "capi").glob("libonnxruntime.so.*")
    return _built("build-onnxruntime.sh", headers, library, folder)


def executorch(folder: Path) -> Path:
    """The folder with the runner, which finds the wheel's libraries where they are."""
    return _built("build-executorch.sh", executorch_runtime.wheel(), Path(torch.__file__).parent / "lib", folder)


def _built(script: str, *places: Path) -> Path:
    """What a script of devices/runner leaves in the last of `places`."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the runner with")
    subprocess.run(["bash", str(SCRIPTS / script), *map(str, places)], check=True, timeout=300)
    return places[-1]


def serving(program: Path) -> Generator[Worker]:
    """A runner that waits for messages, as a fixture gives it."""
    found = Worker("runner", [str(program)])
    yield found
    found.close()


def same_linear(worker: Worker, here: Device, artifact: Path, setting: Setting) -> None:
    """The first multiplication of an artifact, on 3 rows and on one: equal, bit for bit."""
    weight = next(w for w in read(artifact).weights if w.kind == "matmul")
    width = weight.load().codes.shape[1]
    rows = [np.random.default_rng(i).normal(size=(n, width)).astype(np.float32) for i, n in ((0, 3), (1, 1))]
    batches = [{weight.input: row} for row in rows]
    mine = here.evaluate(weight.program(), batches, setting)
    its = child.evaluate(worker, weight.program(), batches, setting, Limits())
    assert all(np.array_equal(a, b) for a, b in zip(mine, its, strict=True))
