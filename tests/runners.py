# SPDX-License-Identifier: Apache-2.0
"""dlqat_runner with onnxruntime, built for this machine: the source that a phone gets, beside the library of the wheel."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from dlqat.devices import setup

SCRIPT = Path(setup.__file__).parents[1] / "runner" / "build-onnxruntime.sh"


def onnxruntime(folder: Path) -> Path:
    """The folder with the runner and libonnxruntime.so."""
    headers = setup.home() / "arm64" / "include"
    if not (headers / "onnxruntime_cxx_api.h").is_file():
        pytest.skip(f"no headers of onnxruntime in {headers}; dlqat-devices --set-up qemu")
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the runner with")
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    (library,) = (Path(found.origin).parent / "capi").glob("libonnxruntime.so.*")
    subprocess.run(["bash", str(SCRIPT), str(headers), str(library), str(folder)], check=True, timeout=300)
    return folder
