# SPDX-License-Identifier: Apache-2.0
"""Runtimes that round activations to int8 in a way nobody stated: "not verified", unless what comes out is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import artifacts
from dlqat import artifact
from dlqat.devices.device import Setting
from dlqat.devices.host.ort import HostOrt
from dlqat.runtime_tests.check import ladder
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.reference.model import Reference


class Rounding(HostOrt):
    """Adds errors of 1 % that go both ways to every product; logits times `logits`, products times `gain`."""

    def __init__(self, gain: float = 1.0, logits: float = 1.0, lookups: float = 1.0, only: str = "") -> None:
        self.gain, self.size, self.lookups, self.only = gain, logits, lookups, only

    def evaluate(self, program: bytes, batches: Sequence[Any], setting: Setting) -> list[np.ndarray]:
        results = super().evaluate(program, batches, setting)
        if any(v.dtype == np.int64 for v in batches[0].values()):
            return [self.lookups * y for y in results]
        if self.only and self.only.encode() not in program:
            return results
        noise = np.random.default_rng(0)
        return [y * self.gain + 0.01 * np.abs(y).mean() * noise.standard_normal(y.shape) for y in results]

    def open(self, program: Path, setting: Setting) -> Any:
        session = super().open(program, setting)
        real = session.logits
        session.logits = lambda ids: real(ids) * self.size  # type: ignore[method-assign]
        return session


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The form with int8 activations in the graph: it has no float setting."""
    return artifacts.export(tmp_path_factory.mktemp("web"), "web")


def climb(web: Path, device: HostOrt, *rungs: str) -> dict[str, tuple[str, str]]:
    proof = Proof(artifact.find(web), Reference(web.parent / "folded"), device, 1, quick=False, progress=lambda _: None)
    first: dict[str, tuple[str, str]] = {}  # of each rung: linears, logits, greedy text
    for check in ladder.run(proof, rungs):
        first.setdefault(check.rung, (check.status, check.summary))
    return first


def test_rounding_that_nobody_stated_is_not_verified(web: Path):
    found = climb(web, Rounding(), "L1", "L2", "L3")
    assert {status for status, _ in found.values()} == {"not verified"}
    assert "KL to float" in found["L2"][1]


@pytest.mark.parametrize("device", [Rounding(gain=1.05), Rounding(lookups=1.05)], ids=["products", "lookups"])
def test_what_is_too_large_is_no_rounding(web: Path, device: HostOrt):
    assert climb(web, device, "L1")["L1"][0] == "failed"


def test_a_linear_that_rounds_otherwise_than_its_kind_is_wrong(web: Path):
    status, summary = climb(web, Rounding(only="model.layers.1.mlp.down_proj"), "L1")["L1"]
    assert status == "failed"
    assert "layers.1.mlp.down_proj" in summary


@pytest.mark.parametrize("size", [0.0, float("nan")])
def test_garbage_fails_however_it_rounds(web: Path, size: float):
    found = climb(web, Rounding(logits=size), "L1", "L2", "L3")
    assert [found[r][0] for r in ("L1", "L2", "L3")] == ["not verified", "failed", "failed"]
