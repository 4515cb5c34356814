# SPDX-License-Identifier: Apache-2.0
"""Artifacts on other versions of their runtimes: the oldest and the newest that an app may link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import artifacts
from dlqat.devices import cli
from dlqat.devices.all import DEVICES
from dlqat.devices.releases import RELEASES, EmulatedRelease, Released
from dlqat.runtime_tests.check import ladder

ENDS = [d for d in RELEASES if d.name != "qemu-arm64-executorch@1.2"]  # a minute between 1.0 and today's; by hand
FORMS = [(d, form) for d in ENDS for form in (("xnnpack",) if "executorch" in d.formats else ("qdq", "ort", "web"))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The artifact of a form, written once."""
    made: dict[str, Path] = {}

    def artifact(form: str) -> Path:
        if form not in made:
            made[form] = artifacts.export(tmp_path_factory.mktemp(form), form, "llama-biased")
        return made[form]

    return artifact


@pytest.mark.parametrize(("device", "form"), FORMS, ids=lambda x: getattr(x, "name", x))
def test_every_release(device: Released, form: str, exported: Callable[[str], Path]) -> None:
    """Every linear and the logits as on the version installed here; conditions of apps change no bit."""
    if reason := device.available():
        pytest.skip(reason)
    artifact = exported(form)
    proof = artifacts.proof(artifact, artifact.parent / "folded", quick=True)
    proof.device = device
    found = list(ladder.run(proof, ("L1", "L2")))
    device.close()
    assert {c.name: c.summary for c in found if c.status != "passed"} == {}
    assert str(proof.settings[0]) in {c.name for c in found if c.rung == "L2"}
    assert proof.facts[str(proof.settings[0])]["runtime"] == f"{device.release.package} {device.release.version}"


def test_a_release_is_a_device_by_its_name() -> None:
    for device in RELEASES:
        assert DEVICES[device.name] is device
        assert device.release.set_up in cli.scripts()
        assert isinstance(device, EmulatedRelease) == device.name.startswith("qemu-arm64-")


def test_what_is_not_set_up_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DLQAT_DEVICES", str(tmp_path))
    for device in RELEASES:
        assert str(device.available()).endswith(f"dlqat-devices --set-up {device.release.set_up}")
